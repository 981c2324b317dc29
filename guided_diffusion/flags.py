"""Command-line flags from dataclasses: the group that uses a value defines its flag, once.

A field made by `flag` is a flag; `parse` turns a command line into one object per group. Values are
written as published: `--learn_sigma True`, underscores, lists with commas.
"""

import argparse
import dataclasses
import difflib
import math
import numbers
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UserError

TRUE = ("true", "t", "yes", "y", "1")
FALSE = ("false", "f", "no", "n", "0")
# flags of other code bases: the flags here that mean the same; those that a script has are suggested
_STEPS_OF_TRAINING = "epochs epoch num_epochs max_epochs num_iterations num_train_steps train_steps total_steps iters"
_STEPS_OF_SAMPLING = "num_inference_steps sampling_steps sample_steps ddim_steps num_sampling_steps respacing nfe"
REPLACED = {"bootstrap": ["--standard_error True"]} | {
    said: meant.split()
    for saids, meant in {
        _STEPS_OF_TRAINING: "--iterations",
        _STEPS_OF_SAMPLING: "--timestep_respacing",
        "steps num_steps": "--iterations --timestep_respacing",
        "timesteps num_timesteps": "--diffusion_steps",
        "config yaml recipe": "--preset",
        "cfg": "--guidance_scale --preset",
        "cfg_scale guidance guidance_weight": "--guidance_scale --classifier_scale",
        "learning_rate": "--lr",
        "lr_decay lr_decay_steps lr_schedule lr_scheduler": "--lr_anneal_steps",
        "warmup warmup_steps lr_warmup": "--lr_warmup_steps",
        "resume resume_from resume_from_checkpoint restore": "--resume_checkpoint",
        "pretrained finetune fine_tune": "--init_from --model_path",
        "checkpoint ckpt ckpt_path checkpoint_path weights model load": "--model_path --resume_checkpoint",
        "o output outdir output_dir output_path save_dir save_path logdir log_dir results_dir": "--out_dir --out",
        "data dataset data_path dataset_path dataroot train_dir": "--data_dir --reference",
        "input inputs": "--data_dir --base_samples --samples",
        "resolution size res img_size": "--image_size --large_size",
        "batch bs": "--batch_size",
        "total_batch_size global_batch_size effective_batch_size": "--global_batch --batch_size",
        "grad_accum accumulation gradient_accumulation_steps": "--microbatch",
        "gpu gpus cuda": "--device",
        "fp16 half amp mixed_precision": "--use_fp16",
        "bf16": "--use_bf16",
        "n count num_images n_samples": "--num_samples",
        "sampler": "--solver",
        "samplers": "--settings --solver",
        "ema ema_decay": "--ema_rate",
        "clip_grad max_grad_norm gradient_clip gradient_clipping": "--grad_clip",
        "gradient_checkpointing": "--use_checkpoint",
        "workers": "--num_workers",
        "label labels": "--classes --class_cond",
        "channels base_channels model_channels": "--num_channels --classifier_width",
    }.items()
    for said in saids.split()
}
# flags that --help explains; --help all explains every one
FIRST = 10
# what argparse calls the section of --help itself
OPTIONS = "options"
# flags that name a checkpoint, which may say the rest
CHECKPOINTS = ("model_path", "resume_checkpoint")


@dataclass(frozen=True)
class Legal:
    """The legal values of a flag that is a number.

    :ivar text: in words.
    :ivar holds: `value -> bool`; not called with NaN or infinity, which are never legal.
    """

    text: str
    holds: Callable = dataclasses.field(compare=False)


POSITIVE = Legal("above 0", lambda value: value > 0)
FRACTION = Legal("0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Legal("at least 0 and below 1", lambda value: 0 <= value < 1)

# Upper bounds of counts: far above any real use, far below what exhausts memory.
IMAGES, SIDE, WIDTH, STEPS, THREADS = 10**7, 2**14, 2**16, 10**6, 2**10

COUNT_OR_UNSET = Legal(f"-1 or at least 1, at most {WIDTH}", lambda value: value == -1 or 1 <= value <= WIDTH)


def at_least(low, most=2**63 - 1):
    """Legal values from `low` to `most`, which the text leaves out where it is only the limit of int64."""
    shown = f"at least {low}" if most == 2**63 - 1 else f"at least {low}, at most {most}"
    return Legal(shown, lambda value: low <= value <= most)


def flag(
    default,
    help,
    choices=None,
    aliases=(),
    legal=None,
    *,
    free=False,
    lasting=False,
    hidden=False,
    noising=False,
    classes=False,
    relearnt=False,
    idle=False,
    content=False,
    released=False,
    shared=False,
    needs="",
    spells="",
    opens="",
    many=False,
    essential="",
    words=None,
):
    """A dataclass field that is a flag of the field's name.

    What follows `legal` are marks, which `Parsed.marked` and `marked` ask for.

    :param default: its type is the flag's type (bool, int, float or str).
    :param help: one sentence.
    :param choices: the legal values, or None.
    :param aliases: other published spellings, without dashes.
    :param legal: a Legal, for numbers that may not have every value.
    :param free: one run may have it other than what its checkpoint was trained with.
    :param lasting: it decides what the next steps of training compute, so a resumed run keeps it.
    :param hidden: it changes what a network does and its tensors do not show it, so a checkpoint alone leaves it open.
    :param noising: it says how images are noised, or the time of it told, so a noisy classifier shares it.
    :param classes: it says which classes a network knows, which --init_from may change.
    :param relearnt: it says what a network's output means, which --init_from may change, as training learns it anew.
    :param idle: it changes no image of a sampling run.
    :param content: it names a file of which the content decides, not the name.
    :param released: scripts of its paper's own release have it, so a client's command line means it by that name.
    :param shared: groups that stand side by side have it in common, though each says it in its own words.
    :param needs: the flag without which, where that is False, nothing reads this one; "" for none.
    :param spells: the flag of which it is another spelling; "" for none.
    :param opens: a name in networks.NETWORKS: of the checkpoint that it names, which the field of this name holds.
    :param many: it holds any number of texts, with spaces between, quoted as in a shell.
    :param words: {text: number} that a whole number may also be written as.
    :param essential: the flag of which scripts have this among the first that one needs, perhaps itself; "" for none.
    """
    marks = {
        "free": free,
        "lasting": lasting,
        "hidden": hidden,
        "noising": noising,
        "classes": classes,
        "relearnt": relearnt,
        "idle": idle,
        "content": content,
        "released": released,
        "shared": shared,
        "needs": needs,
        "spells": spells,
        "opens": opens,
        "many": many,
        "essential": essential,
    }
    metadata = {"help": help, "choices": choices, "aliases": tuple(aliases), "legal": legal, "marks": marks}
    metadata["words"] = words
    return dataclasses.field(default=default, metadata=metadata)


def flags_of(group):
    """The fields of a group, a class or an object, that are flags: those that `flag` made."""
    return [field for field in dataclasses.fields(group) if "marks" in field.metadata]


def marked(groups, mark):
    """{flag: its mark} of the flags of some groups that have the mark: True, or a name for `needs` and `spells`.

    :raises KeyError: if `flag` knows no such mark.
    """
    marks = {field.name: field.metadata["marks"][mark] for group in groups for field in flags_of(group)}
    return {name: value for name, value in marks.items() if value}


class FlagGroup:
    """Base of the dataclasses of flags: a value that is not legal is a UserError.

    A field that `flag` did not make is none: no command line sets it, and no list of flags shows it.
    """

    def __post_init__(self):
        for field in flags_of(self):
            legal, choices, value = field.metadata["legal"], field.metadata["choices"], getattr(self, field.name)
            if choices and value not in tuple(choices):
                raise UserError(f"--{field.name} is {value!r}; expected one of {', '.join(map(_shown, choices))}")
            if isinstance(value, float) and not math.isfinite(value):
                text = f", {legal.text}" if legal else ""
                raise UserError(f"--{field.name} is {value}; expected a finite number{text}")
            if isinstance(value, (int, float)) and abs(value) >= 2**63:
                raise UserError(f"--{field.name} is {value}; expected a number below 2^63")
            if legal is not None and not (isinstance(value, numbers.Real) and legal.holds(value)):
                raise UserError(f"--{field.name} is {value!r}; expected {legal.text}")

    def refuse_unread(self, given):
        """Validate what a command line alone can mean wrongly: flags that nothing would read, or that contradict.

        :param given: {flag: value} of those that somebody set, if only to their default.
        :raises UserError: naming the first.
        """


def whole(text):
    """The integer that a text of ASCII digits is, with a sign or without.

    :raises ValueError: for any other text, such as 1_0 or digits of another script, which Python would take.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,400}\s*", text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def number(text):
    """The float that a text of ASCII digits is, or nan or inf, which no flag has as a legal value.

    :raises ValueError: as `whole`.
    """
    if not re.fullmatch(
        r"\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity|nan)\s*", text, re.IGNORECASE
    ):
        raise ValueError(f"{text!r} is no number")
    return float(text)


# what argparse calls them in its errors
whole.__name__, number.__name__ = "int", "float"


def str2bool(text):
    """True or False of a word such as True, no, 1.

    :raises argparse.ArgumentTypeError: for any other word.
    """
    if isinstance(text, bool):
        return text
    word = text.lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise argparse.ArgumentTypeError("expected True or False")


@dataclass
class Parsed:
    """A parsed command line.

    :ivar groups: {group class: its object}.
    :ivar given: names of the flags that the command line gave.
    :ivar absent: names of the fields that are no flags of this script.
    """

    groups: dict
    given: frozenset
    absent: frozenset = frozenset()

    def __getitem__(self, group):
        return self.groups[group]

    def values(self):
        """All flags by name, sorted."""
        merged = {}
        for group in self.groups.values():
            merged.update({field.name: getattr(group, field.name) for field in flags_of(group)})
        return {k: v for k, v in sorted(merged.items()) if k not in self.absent}

    def with_values(self, values):
        """The same with some flags replaced: {name: value}; `given` stays."""
        groups = {
            cls: dataclasses.replace(group, **{k: v for k, v in values.items() if k in _names(cls)})
            for cls, group in self.groups.items()
        }
        return Parsed(groups, self.given, self.absent)

    def refuse_unread(self):
        """Validate what the command line said again, now that a checkpoint has said the rest.

        :raises UserError: as `FlagGroup.refuse_unread`.
        """
        values = self.values()
        given = {name: value for name, value in values.items() if name in self.given and name not in CHECKPOINTS}
        for group in self.groups.values():
            if isinstance(group, FlagGroup):
                group.refuse_unread(given)

    def defaults(self):
        """{flag: default} as the groups define it."""
        return {field.name: field.default for group in self.groups for field in flags_of(group)}

    def marked(self, mark):
        """Names of the flags of this script that have a mark of `flag`."""
        return frozenset(marked(self.groups, mark)) - self.absent


def _names(group):
    return {field.name for field in flags_of(group)}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # no flag begins with a digit, so lists such as -0.3,1 are values too
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message):
        found = re.fullmatch(r"argument (--\w+)\S*: expected one argument", message)
        if found and self._option_string_actions[found[1]].type is str2bool:
            message = f"argument {found[1]}: expected True or False, as in {found[1]} True"
        raise UserError(message)

    def first(self):
        """Names of the flags that one needs first, at most FIRST."""
        names = [action.dest for section in self._action_groups for action in section._group_actions]
        essential = [action.dest for action in self._actions if getattr(action, "essential", "") in names]
        return essential[:FIRST]

    def format_first(self):
        """The help on the flags that one needs first, and the names of the others."""
        formatter, first = self._get_formatter(), self.first()
        formatter.add_usage("%(prog)s --flag value ...", [], [])
        formatter.add_text(self.description)
        formatter.start_section("what one needs first")
        formatter.add_arguments(action for action in self._actions if action.dest in first)
        formatter.end_section()
        formatter.start_section("the rest, which --help all explains")
        for section in self._action_groups:
            names = [f"--{action.dest}" for action in section._group_actions if action.dest not in first]
            if names and section.title != OPTIONS:
                words = f"{section.title}: {' '.join(names)}"
                formatter.add_text(
                    textwrap.fill(words, 100, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
                )
        formatter.end_section()
        # texts stand apart from each other; these are lines of one list
        head, rest, names = formatter.format_help().partition("the rest, which --help all explains:\n")
        return head + rest + names.replace("\n\n", "\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves a value such as max-autotune in one piece at the end of a line."""

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Help(argparse.Action):
    """Prints the help, all of it where asked, and ends the process."""

    def __call__(self, parser, namespace, value, option_string=None):
        print(parser.format_help() if value else parser.format_first(), end="")
        parser.exit()


def words_of(text, name=""):
    """The words of a text, split as a shell does.

    :param name: of the flag whose text it is, for errors.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{name}: " * bool(name) + f"{error} in {text!r}") from error


def parser_for(groups, description, overrides=None):
    """An argparse parser for the flags of dataclasses.

    :param overrides: {flag: default} of this script; None as a value takes the flag away.
    :raises UserError: if two groups have different flags of one name.
    """
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "-h",
        "--help",
        action=_Help,
        nargs="?",
        type=_one_of(["all"]),
        metavar="all",
        default=argparse.SUPPRESS,
        help="Explain the flags that one needs first, or all of them.",
    )
    overrides = overrides or {}
    seen = {}
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
        for field in flags_of(group):
            # groups may share a flag, such as the image size of a network and its classifier
            if overrides.get(field.name, "") is None or _is_shared(field, group, seen):
                continue
            _add(section, field, overrides.get(field.name, field.default))
    return parser


def _is_shared(field, group, seen):
    """Whether a flag is there already, by its group.

    :param seen: {spelling: (group, field)} of those that are there, to which it is added.
    :raises UserError: if that is another flag.
    """
    names = (field.name, *field.metadata["aliases"])
    for name in names:
        if name in seen:
            other, known = seen[name]
            same = (field.name, field.default) == (known.name, known.default)
            shared = all(one.metadata["marks"]["shared"] for one in (field, known))
            if not same or (not shared and field.metadata != known.metadata):
                raise UserError(f"--{name} is a flag of {other.__name__} and another of {group.__name__}; rename one")
            return True
    seen |= dict.fromkeys(names, (group, field))
    return False


def _one_of(choices):
    """The conversion of a text flag that has no other values."""

    def chosen(text):
        if text in choices:
            return text
        nearest = difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
        expected = f"did you mean {nearest[0]}? All are " if nearest else "expected one of "
        raise argparse.ArgumentTypeError(f"{text!r} is not known; {expected}{', '.join(filter(None, choices))}")

    return chosen


def _shown(value):
    return repr(value) if value == "" else str(value)


_CONVERSIONS = {bool: str2bool, int: whole, float: number}


def _conversion(field):
    """From the text of a flag's value to the value."""
    kind, choices, words = type(field.default), field.metadata["choices"], field.metadata["words"]
    if words:

        def int_or_word(text):
            return words[text] if text in words else whole(text)

        int_or_word.__name__ = f"int, or {' or '.join(words)}"
        return int_or_word
    return _one_of(choices) if choices and kind is not bool else _CONVERSIONS.get(kind, kind)


def _options(field):
    """The spellings of a flag, with their dashes."""
    return [f"--{name}" for name in (field.name, *field.metadata["aliases"])]


def _read(field, text):
    """The value of a flag by its text; argparse has the same sentences for one that is none."""
    convert, name = _conversion(field), "/".join(_options(field))
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"argument {name}: {error}") from error
    except ValueError as error:
        raise UserError(f"argument {name}: invalid {convert.__name__} value: {text!r}") from error


def _add(section, field, default):
    kind = type(field.default)
    choices = field.metadata["choices"]
    if kind is bool:
        choices = (True, False)
    legal = field.metadata["legal"].text if field.metadata["legal"] else ""
    if choices:
        legal = f"one of {', '.join(map(_shown, choices))}"
    shown = f"default: {_shown(default)}{'; ' + legal if legal else ''}"
    action = section.add_argument(
        *_options(field),
        dest=field.name,
        type=_conversion(field),
        default=argparse.SUPPRESS,
        metavar=kind.__name__.upper(),
        help=f"{field.metadata['help']} ({shown})".replace("%", "%%"),
    )
    action.essential = field.metadata["marks"]["essential"]


def parse(argv, groups, description, overrides=None, fill=None, positional=()):
    """The Parsed command line.

    :param fill: `(given flags {name: value}, names of all flags) -> {name: value}` of flags that count as given
        where the command line leaves them out, as a preset does; None fills in nothing.
    :param positional: text flags whose values may stand without their names, in this order; a last one that holds
        many takes all that are left.
    :raises UserError: one sentence that names the flag; an unknown flag is answered with the nearest.
    """
    parser = parser_for(groups, description, overrides)
    namespace, unknown = parser.parse_known_args(argv)
    given, overrides = vars(namespace), overrides or {}
    free = [name for name in positional if name not in given]
    wrong, before = [word for word in unknown if word.startswith("-")], len(free) - 1
    if not wrong and len(unknown) > before >= 0 and free[-1] in marked(groups, "many"):
        unknown = [*unknown[:before], shlex.join(unknown[before:])]
    wrong = wrong or unknown[len(free) :]
    if wrong:
        raise UserError(_unknown(wrong[0], parser))
    given |= zip(free, unknown)
    return _parsed(given, groups, overrides, fill)


def stated(values, groups, overrides=None, fill=None):
    """The Parsed flags of {flag: value} as Python has them, each read as its text on a command line is.

    :param values: by the names of flags, or their aliases; None leaves one out.
    :param overrides, fill: as for `parse`.
    :raises UserError: as `parse`.
    """
    overrides = overrides or {}
    fields = [field for group in groups for field in flags_of(group) if overrides.get(field.name, "") is not None]
    named = {name: field for field in fields for name in (field.name, *field.metadata["aliases"])}
    given = {}
    for name, value in values.items():
        if name not in named:
            raise UserError(_unknown_flag(f"--{name}", [f"--{known}" for known in named]))
        if value is not None:
            field = named[name]
            if field.name in given:
                raise UserError(f"--{name} {value} is --{field.name}, which is given too; expected one of them")
            given[field.name] = _read(field, str(value))
    return _parsed(given, groups, overrides, fill)


def _parsed(given, groups, overrides, fill):
    """The Parsed flags of the {flag: value} that are given, for `parse`, which has the parameters."""
    absent = frozenset(k for k, v in overrides.items() if v is None)
    if fill is not None:
        filled = fill(given, set().union(*map(_names, groups)) - absent)
        for one, other in marked(groups, "spells").items():
            if given.keys() & {one, other}:
                filled = {k: v for k, v in filled.items() if k not in (one, other)}
        _refuse_other_types(filled, groups)
        given = filled | given
    values = {k: v for k, v in overrides.items() if v is not None} | given
    made = {group: group(**{k: v for k, v in values.items() if k in _names(group)}) for group in groups}
    for group in made.values():
        if isinstance(group, FlagGroup):
            group.refuse_unread(given)
    return Parsed(made, frozenset(given), absent)


def may_be_known(name, given):
    """Whether a checkpoint may say the value of a flag that a command line, as {flag: value}, does not."""
    return name not in given and any(given.get(source) for source in CHECKPOINTS)


def _refuse_other_types(values, groups):
    """Validate that values which no command line converted are of the types of their flags."""
    for field in (field for group in groups for field in flags_of(group) if field.name in values):
        value, kind = values[field.name], type(field.default)
        if type(value) is not kind and (kind is not float or type(value) is not int):
            raise UserError(f"--{field.name} is {value!r} there; expected {kind.__name__}, such as {field.default!r}")


def _unknown(argument, parser):
    if not argument.startswith("-"):
        return f"{argument!r} does not belong to any flag; flags are written --name value"
    known = [option for action in parser._actions for option in action.option_strings]
    return _unknown_flag(argument.split("=")[0], known)


def _unknown_flag(name, known):
    said = name.lstrip("-").lower().replace("-", "_")
    nearest = [meant for meant in REPLACED.get(said, ()) if meant.split()[0] in known]
    # a word for what this script does not have is no slip of the pen
    nearest = nearest or difflib.get_close_matches(name, known, n=1, cutoff=0.8 if said in REPLACED else 0.5)
    return f"{name} is not a flag of this script" + (
        f"; did you mean {' or '.join(nearest)}?" if nearest else "; --help all lists them"
    )


def int_list(text, name):
    """The integers of "3,7"; "" is an empty list.

    :param name: of the flag, for the error.
    """
    try:
        return [whole(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UserError(f"--{name} is {text!r}; expected whole numbers with commas between") from None
