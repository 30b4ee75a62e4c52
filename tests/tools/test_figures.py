"""What `python -m utils.maintenance.notebooks --scale full --steps 3` says of figures whose texts cannot be read."""

import pytest
from matplotlib.figure import Figure

from utils import plots
from utils.maintenance.figures import unreadable, watch


def figure(width=6.0):
    figure = Figure(figsize=(width, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0, 1, 4])
    axes.set(xlabel="step", ylabel="loss", title="a title")
    return figure, axes


def test_a_readable_figure_has_no_fault():
    assert unreadable(figure()[0]) == []


def test_ticks_out_of_view_are_not_drawn():
    drawing, axes = figure()
    axes.set_xlim(0.9, 1.1)
    assert unreadable(drawing) == []


def test_texts_that_overlap_are_named():
    drawing, axes = figure()
    axes.text(1, 2, "one text")
    axes.text(1.05, 2, "another")
    assert unreadable(drawing) == ["'one text' and 'another' overlap"]


def test_long_names_of_ticks_collide():
    drawing, axes = figure(width=4.0)
    axes.set_xticks(range(3), ["a very long name of a tick", "and another long name", "and a third one"])
    assert any("overlap" in fault for fault in unreadable(drawing))


def test_a_text_that_is_cut_off_is_named():
    drawing, axes = figure()
    axes.set_title(
        "a title that is much too long for a figure of six inches, so that it is cut off at its edges, as here"
    )
    assert any("is cut off" in fault for fault in unreadable(drawing))


def test_a_figure_wider_than_a_page_is_named():
    assert unreadable(figure(width=12.0)[0]) == ["12.0 inches wide, and a page has 10"]


def test_watching_stops_where_such_a_figure_is_drawn(monkeypatch):
    monkeypatch.setattr(plots, "plain", plots.plain)  # restores it after the test
    watch()
    plots.picture(figure()[0])
    with pytest.raises(ValueError, match="inches wide"):
        plots.picture(figure(width=12.0)[0])


def test_accuracy_curves_show_each_interval():
    points = {50: (0.5, 0.4, 0.7), 400: (0.6, 0.55, 0.65), 9072: (0.8, 0.78, 0.81)}
    drawing = plots.accuracy_curves({"one": points, "another, with a longer name": points}, "labelled texts")
    (axes,) = drawing.axes
    assert unreadable(drawing) == [] and [text.get_text() for text in axes.get_xticklabels()] == ["50", "400", "9,072"]
    for container in axes.containers:
        line, _, (bars,) = container.lines
        assert line.get_ydata().tolist() == [0.5, 0.6, 0.8]
        ends = [sorted(segment[:, 1].tolist()) for segment in bars.get_segments()]
        assert ends == [pytest.approx(point[1:]) for point in points.values()]
