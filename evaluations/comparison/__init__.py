"""A comparison of samplers: its settings, its plan, its rows, its tables and its picture."""

import io

from guided_diffusion import checkpoints, dist_util, files, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.generate import SampleFlags
from guided_diffusion.jobs import launch

from .pictures import picture
from .plan import budgets, make_plan
from .rows import Sampler, finished_row, read_target
from .settings import CompareFlags, Settings, SettingsFlags, measured, named, read_settings
from .tables import csv_table, markdown, mean_and_spread

__all__ = ["CompareFlags", "Settings", "SettingsFlags", "compare", "save"]


def compare(parsed, groups):
    """Sample by every setting with every budget, and write comparison.csv, comparison.md and comparison.png.

    :param parsed: the Parsed command line, with SettingsFlags, CompareFlags and FeatureFlags.
    :param groups: the flag groups that a line of the settings file may set.
    """
    flags, folder = parsed[SettingsFlags], logger.get_dir()
    if not flags.settings:
        raise UserError("--settings is not given; expected a text file with a line NAME: FLAGS for each sampler")
    settings, columns = Settings(read_settings(flags.settings), groups, parsed), budgets(flags, parsed.given)
    if parsed[SampleFlags].num_samples < 2:
        raise UserError("--num_samples is 1; a Frechet distance needs at least 2")
    planned = make_plan(settings, columns)
    # what a command line with a network says in full; each line may still have its own
    shown = checkpoints.resolved(parsed, log=False) if parsed[CheckpointFlags].model_path else parsed
    if not launch.announce(shown):
        return
    target = read_target(parsed)
    rows = []
    for budget in columns:
        known = {}
        for name in settings.lines:
            with named(name):
                setting = settings.parse(name, planned[budget, name], budget, known)
                row = finished_row(Sampler(name, budget, setting), target)
            known[name] = measured(setting, row)
            rows.append(row)
            mean, spread = mean_and_spread(row.distances)
            logger.log(f"{name}, {budget}: distance {mean:.2f} +- {spread:.2f}, {row.calls:g} calls per image")
            if dist_util.is_main():
                save(rows, folder)
    logger.log("\n" + markdown(rows) + f"saved comparison.png, comparison.md and comparison.csv in {folder}")


def save(rows, folder):
    """Write the tables and the picture of the rows so far."""
    files.write_bytes(files.join(folder, "comparison.csv"), csv_table(rows))
    files.write_text(files.join(folder, "comparison.md"), markdown(rows))
    data = io.BytesIO()
    picture(rows).save(data, format="PNG")
    files.write_bytes(files.join(folder, "comparison.png"), data.getbuffer())
