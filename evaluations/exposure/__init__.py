"""Exposure bias, measured: what a sampler's states and predictions are, beside those of true states.

walks.py has the states, measures/ what is read of them, sums.py how that becomes curves with standard errors, batch by
batch, and tables.py and figure.py how they are shown.
"""

from evaluations.comparison import Settings, SettingsFlags
from evaluations.comparison.plan import Budget, budgets, make_plan, process_of
from evaluations.comparison.settings import measured as numbers
from evaluations.comparison.settings import named, read_settings
from guided_diffusion import checkpoints, dist_util, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch

from . import figure, measures, tables
from .real import open_real
from .sampler import Opened

# what a sampler of the command line alone is called
ALONE = "sampler"


def measure(parsed, groups):
    """Measure every setting with every budget, and write exposure_bias.csv, .json and .png.

    :param parsed: the Parsed command line, with SettingsFlags and DataFlags.
    :param groups: the flag groups that a line of the settings file may set.
    """
    flags = parsed[SettingsFlags]
    settings = Settings(read_settings(flags.settings) if flags.settings else {ALONE: ""}, groups, parsed)
    columns = _budgets(settings, parsed)
    planned = make_plan(settings, columns)
    shown = checkpoints.resolved(parsed, log=False) if parsed[CheckpointFlags].model_path else parsed
    if not launch.announce(shown):
        return
    results = []
    for budget in columns:
        known = {}
        for name in settings.lines:
            with named(name):
                setting = settings.parse(name, planned[budget, name], budget, known)
                result = _result(name, budget, setting, parsed[DataFlags])
            known[name] = numbers(setting, result)
            results.append(result)
            if dist_util.is_main():
                tables.save(results, logger.get_dir())
    if dist_util.is_main():
        figure.save(results, logger.get_dir(), measures.MEASURES)
    logger.log(f"saved exposure_bias.csv and .json, and the figure, in {logger.get_dir()}")


def _budgets(settings, parsed):
    """The Budgets of the command line; one sampler alone takes its own number of steps, unless one is asked for."""
    given = parsed.given
    if parsed[SettingsFlags].settings or given & {"steps", "calls"} or "timestep_respacing" not in given:
        return budgets(parsed[SettingsFlags], given)
    return [Budget(len(process_of(settings.parse(ALONE, 1, Budget(1, "steps"), {})).grid), "steps")]


def _result(name, budget, setting, data):
    """The Result of a setting."""
    resolved, network, process = checkpoints.load_diffusion(setting)
    real = open_real(resolved, network, data)
    return Opened.of(resolved, network, real, measures.MEASURES).result(name, budget, resolved, process)
