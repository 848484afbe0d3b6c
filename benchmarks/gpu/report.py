"""The results file read again: the lines at the end of a run, and the figures that a page is made of."""

from collections.abc import Iterator

from benchmarks.gpu.results import RED


def records(results: dict, stage: str) -> Iterator[dict]:
    """Everything that the parts of a stage recorded."""
    for one in results["stages"]:
        if one["name"] == stage:
            for part in one["parts"]:
                yield from part["records"]


def timings(results: dict, stage: str) -> Iterator[dict]:
    """Its records of times, those that have a floor and whose ratios are numbers."""
    for record in records(results, stage):
        ratios = record.get("ours_over", {})
        if "floor" in ratios and all(isinstance(value, float) for value in ratios.values()):
            yield record


def facts(results: dict) -> dict:
    """What stage `device` found, by name."""
    return {record["fact"]: record["value"] for record in records(results, "device") if "fact" in record}


def failures(results: dict) -> list[str]:
    """A line for each thing that did not hold, hung or died."""
    lines = []
    for stage in results["stages"]:
        for part in stage["parts"]:
            wrong = [record for record in part["records"] if record.get("passed") is False]
            if part["state"] in RED and not wrong:
                lines.append(f"{stage['name']} / {part['name']}: {part['state']}: {part['reason']}")
            for record in wrong:
                name = record.get("check") or record.get("timing") or f"{record['operation']}, {record['backend']}"
                figures = [record.get("case"), record.get("detail"), record.get("where")]
                lines.append(f"{stage['name']} / {name}: {'; '.join(filter(None, figures))}")
    return lines


def counts(results: dict) -> tuple[int, int]:
    """How many checks held and how many did not, over all stages."""
    verdicts = [
        record["passed"]
        for stage in results["stages"]
        for part in stage["parts"]
        for record in part["records"]
        if "passed" in record
    ]
    return verdicts.count(True), verdicts.count(False)


def summary(results: dict) -> list[str]:
    """A short table: ratios, then what failed and what was left out."""
    lines = []
    for stage in ("step", "kernels"):
        for record in timings(results, stage):
            time, case = record["microseconds"]["ours"], f"{record['timing']}, {record['case']}"
            ratios = ", ".join(f"{value:.3f} of {name}" for name, value in record["ours_over"].items())
            lines.append(f"{time:12.1f} us  {case}: {ratios}")
    held, failed = counts(results)
    lines.append(f"checks: {held} held, {failed} failed")
    lines += [f"FAILED  {line}" for line in failures(results)]
    lines += [
        f"left out  {one['name']}: {one['reason']}"
        for one in results["stages"]
        if one["state"] in ("skipped", "partial")
    ]
    return lines
