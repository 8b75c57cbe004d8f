"""`anomseg calibrate threshold --frames`: thresholds from an unlabelled drive."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.delivered import deviations
from anomseg_ros.core.ego_mask import read_ego_mask
from anomseg_ros.core.road_region import NO_REGION, road_region
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive, open_drive, read_frame_names
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.calibrate import with_thresholds
from anomseg_ros.evaluation.drive import MIN_ALARM_PX
from anomseg_ros.evaluation.drive_alarms import (
    HeldBackAlarms,
    calibrate_alarms,
    check_minutes,
    with_alarm_thresholds,
)
from anomseg_ros.evaluation.drive_page import drive_page
from anomseg_ros.evaluation.drive_thresholds import (
    TOLERANCE,
    DriveRequest,
    DriveThresholds,
    HeldBackRate,
    calibrate_on_drive,
    split_blocks,
)
from anomseg_ros.evaluation.report_page import write_page

HELP = (
    "a drive without labels: folders of pictures, videos or bags, in which nothing is strange; a third of it is held "
    "back to measure how well the rates hold"
)
USUAL_RATE = 0.01
_DRIVE_OPTIONS = (
    "image_topic",
    "ego_mask",
    "leave_out",
    "every",
    "road_region",
    "page",
    "fps",
    "min_alarm_px",
    "target_alarms_per_minute",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only --frames has."""
    group = parser.add_argument_group("with --frames")
    add_drive_options(group)
    page_help = "HTML page of the frames, worst first, on which to choose the frames for --leave-out"
    group.add_argument("--page", type=options.output_file, metavar="FILE", help=page_help)
    alarms_help = "also thresholds with at most so many alarms per minute, such as 1 or 0.5,2"
    group.add_argument("--target-alarms-per-minute", type=alarm_targets, metavar="NUMBERS", help=alarms_help)


def add_drive_options(group: argparse._ActionsContainer) -> None:
    """Add the options that say which frames of a drive count, and where in them."""
    group.add_argument("--image-topic", help="image topic of the bags (default: the only one in colour)")
    group.add_argument(
        "--ego-mask", type=Path, metavar="FILE", help="image, non-zero where the camera sees its own vehicle"
    )
    leave_out_help = "text file of frames that show something strange, one name per line"
    group.add_argument("--leave-out", type=Path, metavar="FILE", help=leave_out_help)
    group.add_argument("--every", type=int, metavar="N", help="use every N-th frame (default: 1)")
    min_alarm_help = f"smallest area of an alarm, pixels of the frame (default: {MIN_ALARM_PX})"
    group.add_argument("--min-alarm-px", type=int, metavar="PX", help=min_alarm_help)
    rate_help = "frames per second of pictures, for alarms per minute"
    group.add_argument("--fps", type=options.number, metavar="HZ", help=rate_help)
    options.add_road_region(group, "count only the road (and sidewalk) and objects on it, where a road is found")


def open_request_drive(args: argparse.Namespace) -> UnlabelledDrive:
    """Return the drive of --frames and the options of add_drive_options. Raises ConfigError and DatasetError."""
    if args.min_alarm_px is not None and args.min_alarm_px < 1:
        raise ConfigError(f"--min-alarm-px is {args.min_alarm_px}; expected at least 1 pixel")
    ego_mask = None if args.ego_mask is None else read_ego_mask(args.ego_mask, "--ego-mask")
    left_out = () if args.leave_out is None else read_frame_names(args.leave_out)
    every = 1 if args.every is None else args.every
    drive = open_drive(args.frames, topic=args.image_topic, ego_mask=ego_mask, every=every, rate_hz=args.fps)
    return drive.without(left_out)


def refuse_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for an option that needs --frames; called without it."""
    for name in _DRIVE_OPTIONS:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --frames; labelled datasets have no such option")


def calibrate(args: argparse.Namespace, bundle: Bundle, scores: tuple[str, ...]) -> Callable[[Contract], Contract]:
    """Measure a drive and print the thresholds with their rates; return what writes them into a contract."""
    request = _request(args, bundle, scores)
    split_blocks(len(request.drive))  # too short drives are refused before they are read
    check_minutes(request)
    with ProgressLines() as lines:
        check(request.drive, progress=lines).require()
        found = calibrate_on_drive(request, lines)
        alarms = calibrate_alarms(request, found, lines) if request.target_alarms_per_minute else ()
        if args.page is not None:
            write_page(args.page, drive_page(request, found, lines))
    for text in (*_warnings(request.drive, found), *(_off_alarms(one) for one in alarms if not one.holds)):
        Console(stderr=True).print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    _print(found, bundle)
    _print_alarms(alarms)
    if args.page is not None:
        Console().print(f"the frames are shown in {args.page}", soft_wrap=True, highlight=False, markup=False)
    calibrated_on = _calibrated_on(request.drive, found)

    def change(contract: Contract) -> Contract:
        return with_alarm_thresholds(with_thresholds(contract, found.changes, calibrated_on), alarms, calibrated_on)

    return change


def alarm_targets(text: str) -> tuple[float, ...]:
    """Argument type: comma-separated numbers above 0."""
    try:
        values = tuple(dict.fromkeys(options.number(part) for part in options.names(text)))
    except ValueError:
        values = ()
    if not values or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers above 0, such as 1 or 0.5,2")
    return values


def _request(args: argparse.Namespace, bundle: Bundle, scores: tuple[str, ...]) -> DriveRequest:
    road = road_region(args.road_region or NO_REGION, bundle.contract)
    return DriveRequest(
        bundle,
        open_request_drive(args),
        scores,
        args.target_fpr or _usual_rates(bundle, scores),
        road,
        args.backend,
        options.backend_options(args),
        args.target_alarms_per_minute or (),
        MIN_ALARM_PX if args.min_alarm_px is None else args.min_alarm_px,
    )


def _usual_rates(bundle: Bundle, scores: Sequence[str]) -> tuple[float, ...]:
    """Return the rates that the bundle has thresholds for, so that all of them come from the same frames."""
    tables = (bundle.contract.thresholds[score] for score in scores if score in bundle.contract.thresholds)
    return tuple(sorted({USUAL_RATE, *(rate for table in tables for rate in table.by_target_fpr)}))


def percent(share: float | None) -> str:
    """Return a share with three decimals, `-` for None."""
    return "-" if share is None else f"{100 * share:.3f} %"


def _calibrated_on(drive: UnlabelledDrive, found: DriveThresholds) -> str:
    return f"unlabelled drive {', '.join(drive.input_names)} ({found.used} frames, {found.held_back} held back)"


def _print(found: DriveThresholds, bundle: Bundle) -> None:
    title = f"{bundle.contract.name}: thresholds from {found.used} frames, checked on {found.held_back} held back"
    table = Table(title=title, title_justify="left")
    for heading in ("score", "target FPR", "before", "its FPR", "now", "its FPR", "FPR held back", "of target"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for rate in found.rates:
        change = rate.change
        table.add_row(
            change.score,
            f"{change.target_fpr:g}",
            "none" if change.before is None else f"{change.before:.6g}",
            percent(change.fpr_before),
            f"{change.threshold:.6g}",
            percent(change.achieved_fpr),
            percent(rate.fpr),
            f"{rate.ratio:.2f} x",
        )
    options.print_whole(table)


def _print_alarms(alarms: Sequence[HeldBackAlarms]) -> None:
    if not alarms:
        return
    seconds, held_back = 60 * alarms[0].minutes, 60 * alarms[0].held_back_minutes
    title = f"thresholds from {seconds:.1f} s, checked on {held_back:.1f} s held back"
    table = Table(title=title, title_justify="left")
    for heading in ("score", "alarms a minute", "threshold", "alarms", "alarms held back", "a minute", "of target"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for one in alarms:
        table.add_row(
            one.score,
            f"{one.target_per_minute:g}",
            f"{one.threshold:.6g}",
            str(one.alarms),
            str(one.held_back),
            f"{one.held_back_per_minute:.2f}",
            f"{one.ratio:.2f} x" if one.tells else "too short to tell",
        )
    options.print_whole(table)


def _off_alarms(one: HeldBackAlarms) -> str:
    return (
        f"{one.score} at {one.target_per_minute:g} alarms per minute: the frames held back have {one.held_back} alarms "
        f"in {60 * one.held_back_minutes:.1f} s, {one.ratio:.1f} times the target; calibrate on a longer drive, and on "
        "other stretches of road as well"
    )


def _warnings(drive: UnlabelledDrive, found: DriveThresholds) -> list[str]:
    warnings = list(map(str, deviations(drive.differences)))
    if found.roadless:
        total = found.used + found.held_back
        warnings.append(f"no road was found in {found.roadless} of {total} frames; all their pixels count")
    return warnings + _looser(found.rates) + [_off_target(rate) for rate in found.rates if not rate.holds]


def _looser(rates: Sequence[HeldBackRate]) -> list[str]:
    """Return a warning per score whose new threshold is far below the bundle's; of several rates, for the first."""
    texts: dict[str, str] = {}
    for change in (rate.change for rate in rates):
        if change.before is None or change.fpr_before is None or change.fpr_before > change.target_fpr / TOLERANCE:
            continue
        text = (
            f"{change.score} at {change.target_fpr:g}: the threshold falls from {change.before:.6g} to "
            f"{change.threshold:.6g}, since only {percent(change.fpr_before)} of this road's pixels are above the old "
            "one. There will be more alarms. If you want as many as before, keep the bundle as it is, or give a lower "
            "--target-fpr or --target-alarms-per-minute"
        )
        texts.setdefault(change.score, text)
    return list(texts.values())


def _off_target(rate: HeldBackRate) -> str:
    change = rate.change
    return (
        f"{change.score} at {change.target_fpr:g}: on the frames held back the rate is {percent(rate.fpr)}, "
        f"{rate.ratio:.2f} times the target, so the drive's parts differ; calibrate on more frames, and on other "
        "stretches of road as well"
    )
