"""Opening the window, or a picture of it; and what to say where there is no screen."""

from __future__ import annotations

import argparse

from cli import exits
from cli.inputs import ERRORS, plan_of, read_scenario, refuse
from cli.predict import title_of
from cli.system_packages import missing_packages, remedy
from cli.tables import print_footprint
from planner.scenario import Scenario

HOW_TO_OPEN = (
    "No display here (neither DISPLAY nor WAYLAND_DISPLAY is set), so the first plan is printed instead. To open the "
    "window, run this on a desktop, over ssh -X, or under a virtual screen: xvfb-run python main.py. A picture of it: "
    "python main.py --screenshot window.png"
)


def show(options: argparse.Namespace) -> int:
    """Open the window; without a display print the first plan and say how."""
    try:
        scenario = read_scenario(str(options.scenario)) if options.scenario else None
        from gui.app import has_display, run  # noqa: PLC0415  Qt is loaded only for a window
    except ERRORS as error:
        return refuse(error)
    except ImportError as error:
        return _qt_failed(error)
    if not has_display():
        _print_first_plan(scenario)
        return exits.fail(exits.NOT_DONE_HERE, HOW_TO_OPEN)
    missing = missing_packages()
    if missing:
        return exits.fail(exits.NOT_DONE_HERE, f"the window needs libraries that are not here. {remedy(missing)}")
    return run(scenario, options.paths)


def screenshot(options: argparse.Namespace) -> int:
    """Render the window offscreen into a PNG."""
    try:
        from gui import app  # noqa: PLC0415
        from gui.files import Unreadable  # noqa: PLC0415
        from gui.tabs import TABS  # noqa: PLC0415
    except ImportError as error:
        return _qt_failed(error)
    names = [tab.name for tab in TABS]
    if options.tab not in names:
        return exits.fail(exits.BAD_INPUT, f"--tab: must be one of {', '.join(names)}; got {options.tab!r}")
    try:
        app.screenshot(options.screenshot, options.tab, options.scenario, options.theme, options.size)
    except Unreadable as error:
        return exits.fail(exits.BAD_INPUT, str(error))
    except ERRORS as error:
        return refuse(error)
    return exits.DONE


def _print_first_plan(scenario: Scenario | None) -> None:
    from gui.first import FIRST_SCENARIO  # noqa: PLC0415

    plan = plan_of(scenario or FIRST_SCENARIO)
    print_footprint(plan.footprint, title_of(plan))


def _qt_failed(error: ImportError) -> int:
    missing = missing_packages(offscreen=True)
    advice = remedy(missing) if missing else "Install the packages: pip install -c constraints.txt -e ."
    return exits.fail(exits.NOT_DONE_HERE, f"Qt could not be loaded: {error}. {advice}")
