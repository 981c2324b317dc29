"""What was measured, as exposure_bias.csv and exposure_bias.json: noisiest timestep first, each time the same bytes."""

import json

from evaluations.tables import csv_bytes
from guided_diffusion import files

HEAD = ("setting", "budget", "step", "timestep", "alpha_bar")


def save(results, folder):
    """Write both files of some Results to a folder."""
    files.write_bytes(files.join(folder, "exposure_bias.csv"), csv_bytes(lines(results)))
    files.write_text(files.join(folder, "exposure_bias.json"), json.dumps(as_json(results), indent=1) + "\n")


def columns(result):
    """{curve: (its columns, its Curve)} of all measures; a curve has a value, a standard error, and maybe a theory."""
    found = {}
    for curves in result.curves.values():
        for name, curve in curves.items():
            own = [name, f"{name}_se"] + [f"{name}_theory"] * (curve.theory is not None)
            found[name] = own, curve
    return found


def lines(results):
    """The headings, and a line for each kept step of each Result."""
    found = [[*HEAD, *(column for own, _ in columns(results[0]).values() for column in own)]]
    for result in results:
        for i in reversed(range(len(result.times))):
            numbers = [
                part[i]
                for _, curve in columns(result).values()
                for part in (curve.values, curve.errors, curve.theory)
                if part is not None
            ]
            head = [result.name, result.budget, len(result.times) - i, result.times[i]]
            found.append([*head, *(f"{number:.9g}" for number in (result.levels[i], *numbers))])
    return found


def as_json(results):
    """The same with what the csv has no room for: solver, active methods, number of images, variance of the data."""
    return [
        {
            "setting": result.name,
            "budget": result.budget,
            "solver": result.solver,
            "active": result.active,
            "images": result.count,
            "data_variance": result.data_variance,
            "findings": result.findings,
            "timesteps": result.times[::-1].tolist(),
            "measures": {
                measure: {
                    name: {
                        part: values[::-1].tolist()
                        for part, values in (("value", curve.values), ("se", curve.errors), ("theory", curve.theory))
                        if values is not None
                    }
                    for name, curve in curves.items()
                }
                for measure, curves in result.curves.items()
            },
        }
        for result in results
    ]
