from setuptools import Extension, find_packages, setup

# Where there is no compiler, the package is installed without it and computes by torch alone. It is linked without an
# OpenMP library of its own, for it shares the threads of torch's, which is loaded before it. The file chooses its
# instructions when it runs, so it is compiled for any processor.
KERNELS = Extension(
    "guided_diffusion.kernels._kernels",
    ["guided_diffusion/kernels/kernels.c"],
    extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi"],
    optional=True,
)

setup(
    name="guided-diffusion",
    version="0.1.0",
    description="ADM diffusion models in which exposure-bias methods, solvers and launchers compose",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["guided_diffusion", "guided_diffusion.*", "evaluations", "evaluations.*"]),
    ext_modules=[KERNELS],
    package_data={"guided_diffusion": ["py.typed"]},
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "blobfile>=2",
        "Pillow",
        "opencv-python-headless",  # of datasets/celeba.py, and of forks of guided-diffusion, which run on this package
        "tqdm",
        "scipy",
        "mpi4py>=4",
        "mpich; sys_platform != 'win32'",
    ],
    extras_require={
        "data": ["scikit-learn"],
        "safetensors": ["safetensors"],
        "models": ["diffusers", "huggingface_hub", "safetensors", "transformers"],
        "evaluator": ["tensorboard"],
        "plots": ["matplotlib"],
        "lsun": ["lmdb"],
        "huggingface": ["pyarrow"],
    },
)
