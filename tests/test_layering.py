"""The rules of the house, read from the source: imports point one way, and dangerous words stay out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from guided_diffusion.flags import flags_of, marked
from guided_diffusion.methods import STACK

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "guided_diffusion"

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)

# A module imports from lower lines only.
LAYERS = [
    ["errors", "scalars"],
    ["files", "devices"],
    ["flags", "schedule", "losses", "nn", "averages", "learned_variance", "crops", "image_labels"],
    ["kernels"],
    ["kernels.functions", "kernels.winograd"],
    ["jobs", "distributed", "jobs.random_state", "jobs.slow_steps", "jobs.terminal", "distributed.messages"],
    ["training", "training.precision"],
    ["distributed.peers", "tensor_files", "distributed.launchers", "distributed.alone"],
    ["dist_util", "presets", "checkpoints.manifest"],
    ["logger", "dist_util_1gpu", "jobs.interruption", "jobs.folder_lock"],
    ["jobs.progress", "jobs.trial"],
    ["denoiser", "spacing", "unet", "images", "resample", "fp16_util"],
    ["seams"],
    ["sampling"],
    ["networks.levels", "networks.fast"],
    ["networks.latent", "networks.vae"],
    ["networks.unet"],
    ["networks.*"],
    ["networks"],
    ["training.log"],
    ["image_arrays", "jobs.sample_store"],
    ["image_files"],
    ["image_stream"],
    ["image_datasets", "base_samples"],
    ["conditioning.conditioning"],
    ["conditioning.*"],
    ["conditioning"],
    ["solvers.step", "methods.method"],
    ["solvers.*", "methods.*"],
    ["solvers", "methods"],
    ["solvers.flags", "inversion"],
    ["process"],
    ["gaussian_diffusion"],
    ["respace"],
    ["script_util"],
    ["adapters.family", "adapters.edm_networks", "adapters.adm_in_diffusers"],
    ["adapters.diffusers"],
    ["adapters.dit", "adapters.edm"],
    ["adapters"],
    ["checkpoints.read"],
    ["checkpoints.resolve", "checkpoints.sampler"],
    ["checkpoints"],
    ["checkpoints.resume"],
    ["objectives.objective"],
    ["objectives.sampled", "objectives.teacher", "rewards"],
    ["objectives.diffusion"],
    ["objectives.*"],
    ["objectives"],
    ["training.flags", "training.run_files"],
    ["training.data"],
    ["training.loop", "training.validation"],
    ["generate", "train_util", "jobs.launch"],
    ["training.job", "as_improved"],
    ["training.rounds"],
    ["jobs.sampling"],
    ["api"],
    ["scripts"],
]
WORDS = (
    *("schedule", "spacing", "denoiser", "sampling", "inversion", "losses", "solvers", "methods", "conditioning"),
    *("process", "seams", "scalars", "devices"),
)
OUTSIDE = {"argparse", "logging", "tqdm", "blobfile", "mpi4py", "torch.distributed"} | {
    f"guided_diffusion.{name}" for name in ("files", "logger", "dist_util", "distributed")
}


def sources():
    """{dotted name without the package: path}; a script is "scripts.NAME"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    found.pop("__init__")
    return found | {f"scripts.{path.stem}": path for path in sorted((ROOT / "scripts").glob("*.py"))}


SOURCES = sources()


def all_python():
    """The project's own code, but its tests."""
    folders = ("guided_diffusion", "scripts", "evaluations", "datasets", "benchmarks")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path, tree=None):
    """Absolute dotted names that a file imports, `from a import b` as a.b where that is a module, else as a."""
    package = ["guided_diffusion", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else []
    names = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                module = f"{base}.{alias.name}"
                names.add(module if module.removeprefix("guided_diffusion.") in SOURCES else base)
    return names


def layer(module):
    """Index of the module's line in LAYERS."""
    if module.startswith("scripts."):
        return len(LAYERS) - 1
    line_of = {name: i for i, line in enumerate(LAYERS) for name in line}
    return line_of[module] if module in line_of else line_of[module.split(".")[0] + ".*"]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module):
    for name in imports(SOURCES[module]):
        other = name.removeprefix("guided_diffusion.")
        if name.startswith("guided_diffusion.") and other in SOURCES:
            assert layer(other) < layer(module), f"{module} imports {other}"


def forbidden(names):
    return {name for name in names for word in OUTSIDE if name == word or name.startswith(word + ".")}


@pytest.mark.parametrize("module", [m for m in SOURCES if m.split(".")[0] in WORDS])
def test_the_words_know_nothing_of_the_outside_world(module):
    """Nor do the modules they import; flags may be defined anywhere, by whom they concern."""
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        seen.add(current)
        names = imports(SOURCES[current])
        assert not forbidden(names), f"{module} by way of {current}"
        inner = {name.removeprefix("guided_diffusion.") for name in names} & set(SOURCES)
        waiting += inner - seen - {"flags"}


def test_the_words_load_no_files():
    """What they import beside torch, as Python sees it."""
    code = "import sys, torch; own = {*sys.modules}; import guided_diffusion.process; print(*{*sys.modules} - own)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    names = ("files", "images", "image_files", "image_datasets", "logger", "dist_util")
    assert not loaded & {"PIL", "blobfile", "tqdm", "mpi4py", *(f"guided_diffusion.{name}" for name in names)}


@pytest.mark.parametrize("script, arguments", [("image_sample", ["--help"]), ("image_train", ["--preset", "list"])])
def test_what_a_script_says_needs_no_image_library(script, arguments):
    """Nor does it a file in the cloud, or statistics."""
    code = (
        f"import runpy, sys; sys.argv = {[script, *arguments]}; sys.path.insert(0, 'scripts')\n"
        f"try: runpy.run_path('scripts/{script}.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*{'PIL', 'blobfile', 'scipy', 'matplotlib', 'diffusers'} & {*sys.modules}, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.split()) == (0, []), ran.stderr


def test_the_class_imports_a_progress_bar_inside_a_function_alone():
    path = SOURCES["gaussian_diffusion"]
    tree = ast.parse(path.read_text())
    assert forbidden(imports(path, tree)) == {"tqdm.auto"}
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert not forbidden(imports(path, top))


@pytest.mark.parametrize("path", all_python(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_dist_util_and_distributed_know_distribution(path):
    text = path.read_text()
    if path != PACKAGE / "dist_util.py" and path.parent != PACKAGE / "distributed":
        assert not {name.split(".")[0] for name in imports(path)} & {"mpi4py"}
        assert "mpi4py" not in text and "torch.distributed" not in text and "MPI." not in text
        assert "GPUS_PER_NODE" not in text or path == PACKAGE / "dist_util_1gpu.py"
    assert "CUDA_VISIBLE_DEVICES" not in text


@pytest.mark.parametrize("path", all_python(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_read_that_may_run_code(path):
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert given.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False" and len(call.args) < 3
        assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load")


@pytest.mark.parametrize("path", all_python(), ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_are_no_numbers_of_python(path):
    """Which takes 1_0 and the digits of every script; benchmarks are run by those who wrote them."""
    if path.parent.name == "benchmarks":
        return
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).endswith(".add_argument"):
            assert not {ast.unparse(k.value) for k in call.keywords if k.arg == "type"} & {"int", "float"}


# which read lines, messages and members, and not files, and take what cannot be read for none
JSON_READERS = ["class_api.py", "files.py", "logger.py", "messages.py", "rows.py"]


@pytest.mark.parametrize("path", all_python(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_json_have_one_reader(path):
    """It alone knows of pipes, of files without end and of lists within lists."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert path.name in JSON_READERS or not {"json.load", "json.loads"} & set(calls)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_no_test_is_imported(path):
    """What two tests need stands in a module of its own."""
    assert not [name for name in imports(path) for part in name.split(".") if part.startswith("test_")]


def test_the_reader_of_imports_reads():
    """The rules above would hold of nothing if imports were overlooked."""
    expected = {"typing", "guided_diffusion.flags", "guided_diffusion.scalars", "guided_diffusion.solvers.step"}
    assert imports(SOURCES["solvers.ddim"]) == expected
    assert "guided_diffusion.dist_util" in imports(SOURCES["generate"])
    assert {"guided_diffusion.logger", "tqdm.auto"} <= imports(SOURCES["jobs.progress"])
    assert "guided_diffusion.jobs.launch" in imports(SOURCES["scripts.image_sample"])
    assert {"goldens", "recipe"} <= imports(ROOT / "tests" / "test_golden_methods.py")
    assert len(all_python()) > 30


# scripts of published names; likelihoods, whose images are clipped
NAMES_A_METHOD = {
    "scripts/image_nll.py": {"Clipping"},
    "scripts/classifier_sample.py": {"ClassifierGuidance"},
}


# arguments of published functions, and of any script that reads a classifier
PUBLISHED_NAMES = {"clip_denoised", "classifier_path"}


@pytest.mark.parametrize("path", all_python(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_names_a_method_that_is_not_its_own(path):
    """Nor a flag of one; a method is its file and its line of the table."""
    place = path.relative_to(ROOT).as_posix()
    if place.startswith(("guided_diffusion/methods/", "guided_diffusion/presets.py", "benchmarks/")):
        return
    tree, own = ast.parse(path.read_text()), NAMES_A_METHOD.get(place, set())
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for method in STACK:
        # but for those that it shares with a network
        flags = {field.name for field in flags_of(method)} - marked([method], "shared").keys()
        flags = flags if method.__name__ not in own else set()
        assert method.__name__ not in names - own, f"{place} names {method.__name__}"
        assert not flags & (names | texts - docstrings) - PUBLISHED_NAMES, f"{place} names a flag"


def test_every_folder_of_the_packages_is_packaged():
    """setup.py finds packages by their __init__.py, so a folder without one would be left out of a wheel."""
    for package in ("guided_diffusion", "evaluations"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders)
    setup = (ROOT / "setup.py").read_text()
    assert "find_packages(" in setup and "py.typed" in setup and (PACKAGE / "py.typed").exists()
