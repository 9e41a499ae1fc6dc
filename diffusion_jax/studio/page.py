"""The page: its fields and its four tabs, bound to what they call."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.themes import Default

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation.experiments import EDITS, EXPERIMENTS, LAB
from diffusion_jax.studio import bounds, html
from diffusion_jax.studio.calls import EMPTY, Calls
from diffusion_jax.studio.desk import Form

KEPT = 3600
"""Seconds for which what was made, or sent, is kept."""
WORDS = (
    "Run", "Classes (none: all in turn)", "Text", "Not wanted", "Number of each", "Seed",
    "Steps", "Guidance (1 is none)", "Sampler", "Times", "Rescaled φ", "CADS s (0 is none)",
    "Guide only where low,high of σ/α", "Dynamic threshold (0 is none)", "Temperature",
)
"""The labels of the fields of a form."""
NUMBERS = {
    "num": (1, bounds.PICTURES, 1),
    "steps": (1, bounds.STEPS, 1),
    "guidance": (-10, 20, 0.1),
    "phi": (-10, 10, 0.1),
    "cads": (0, 1, 0.01),
    "threshold": (0, 1, 0.005),
    "temperature": (0.05, 2, 0.05),
}
"""Least, most and step of those fields that are sliders."""
OPEN = Form._fields.index("sampler")
"""So many fields are seen at once."""
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
"""The default theme would ask another machine for its letters."""
LOOKS_LIKE = {"theme": Default(**FONTS), "css": html.STYLE}
"""What `launch` is told."""


def on(
    event: Any,
    function: Callable[..., Iterator[Any]],
    inputs: Any,
    outputs: Any,
    name: str,
    stop: Any = None,
) -> None:
    """Binds an event to a function, whose errors are shown as the library's lines; what a button
    can stop has the device for itself, first come, first served."""

    def plain(*values: Any) -> Iterator[Any]:
        try:
            yield from function(*values)
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from None

    how: dict[str, Any] = {"api_name": name.replace(" ", "_"), "show_progress": "minimal"}
    if stop is None:
        event(plain, inputs, outputs, **how)
        return
    running = event(plain, inputs, outputs, **how, concurrency_id="device", concurrency_limit=1)
    stopped = stop.click(None, cancels=[running], api_visibility="private")
    # Then, and not at once: the last look may be on its way.
    stopped.then(lambda: "Stopped.", outputs=outputs[0], api_visibility="private")


def field(name: str, choices: Sequence[str] | None, **how: Any) -> Any:
    """A field of the form."""
    how["label"] = WORDS[Form._fields.index(name)]
    if name in NUMBERS:
        least, most, step = NUMBERS[name]
        return gr.Slider(least, most, step=step, **how)
    if name == "seed":
        return gr.Number(precision=0, minimum=0, **how)
    if choices is None:
        lines = 2 if name == "prompt" else 1
        return gr.Textbox(max_length=bounds.LETTERS, lines=lines, **how)
    own = name in ("sampler", "times")
    return gr.Dropdown(choices, multiselect=name == "label", allow_custom_value=own, **how)


def build(calls: Calls) -> gr.Blocks:
    """The page itself."""
    how: dict[str, Any] = {"title": "diffusion_jax studio", "analytics_enabled": False}
    with gr.Blocks(**how, delete_cache=(KEPT, KEPT)) as blocks, gr.Row():
        images, index, history = (gr.State(time_to_live=KEPT) for _ in range(3))
        with gr.Column(scale=2, min_width=300):
            fields = list(zip(Form._fields, calls.desk.shown(calls.desk.first), strict=True))
            form = [field(name, **one) for name, one in fields[:OPEN]]
            with gr.Accordion("How to sample", open=False):
                form += [field(name, **one) for name, one in fields[OPEN:]]
        with gr.Column(scale=5, min_width=300):
            with gr.Tab("Make"):
                send = make_tab(calls, form, images, index)
            with gr.Tab("Edit"):
                drawn, tools, second = edit_tab(calls, form, history)
            with gr.Tab("Lab") as lab:
                to = gr.Textbox(label="Another class or text, to switch to")
                tools += [tool(calls, name, [history, second, to, *form]) for name in LAB]
                lineages = gr.HTML()
            with gr.Tab("Look") as look:
                names = list(calls.desk.pipes)
                several: dict[str, Any] = {"multiselect": True, "visible": len(names) > 1}
                runs = gr.Dropdown(names, label="Runs (none: all)", **several)
                reports = gr.HTML()
        on(send.click, calls.take, [images, index], drawn, "take")
        on(form[0].change, calls.run, form[0], [*form, *tools, second, *drawn], "run")
        on(lab.select, calls.lineages, None, lineages, "lineages")
        on(look.select, calls.look, runs, reports, "look")
        on(runs.change, calls.look, runs, reports, "look_at")
    return blocks


def make_tab(calls: Calls, form: list[Any], images: Any, index: Any) -> Any:
    """Pictures, and a file that fills the form; returns the button that edits one of them."""
    with gr.Row():
        go, stop = gr.Button("Make", variant="primary"), gr.Button("Stop")
    arising = gr.HTML()
    gallery = gr.Gallery(
        show_label=False, columns=4, height="auto", visible=False, elem_classes="small")
    send = gr.Button("Edit the chosen picture")
    png: dict[str, Any] = {"file_types": [".png"], "type": "binary", "height": 120}
    again = gr.File(label="Drop a PNG that was made here: it fills the form", **png)
    on(go.click, calls.make, form, [arising, gallery, images], "make", stop)
    on(again.upload, calls.fill, again, form, "fill")
    gallery.select(chosen, outputs=index, api_visibility="private")
    return send


def edit_tab(calls: Calls, form: list[Any], history: Any) -> tuple[list[Any], list[Any], Any]:
    """A picture to paint on, and edits of it; returns (what a picture is drawn in, the rows of the
    edits, the field of a second picture)."""
    load = gr.UploadButton("Load a picture", file_types=["image"], type="binary")
    brush = gr.Brush(colors=["#e11d48"], color_mode="fixed", default_size=24)
    plain: dict[str, Any] = {"show_label": False, "sources": (), "transforms": (), "layers": False}
    drawn = [history, gr.ImageEditor(brush=brush, **plain), gr.Markdown(EMPTY)]
    strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength: how much of it is new")
    with gr.Row():
        go, stop = gr.Button("Make it anew", variant="primary"), gr.Button("Stop")
        undo, save = gr.Button("Undo"), gr.Button("Save the session")
    painting, saved = gr.HTML(), gr.File(label="Session", visible=False)
    to = gr.Textbox(label="Another class or text, to mix with or to go to")
    has_two = "interpolation" in calls.desk.tools[calls.desk.first.run]
    second = gr.File(label="A second picture", type="binary", height=120, visible=has_two)
    tools = [tool(calls, name, [history, second, to, *form]) for name in EDITS]
    on(load.upload, calls.load, [form[0], load], drawn, "load")
    on(go.click, calls.paint, [*drawn[:2], strength, *form], [painting, *drawn], "paint", stop)
    on(undo.click, calls.undo, history, drawn, "undo")
    on(save.click, calls.save, history, saved, "save")
    return drawn, tools, second


def tool(calls: Calls, name: str, rest: list[Any]) -> Any:
    """The row of an edit or an experiment: a slider for one value, a button for all of them, and
    what it makes; `rest` are the inputs of `Calls.sheet` behind the value."""
    values = EXPERIMENTS[name].values
    with gr.Column(visible=name in calls.desk.tools[calls.desk.first.run]) as column:
        with gr.Row(equal_height=False):
            one = None
            if values:
                middle = values[len(values) // 2]
                one = gr.Slider(min(values), max(values), middle, step=0.05, label=name, scale=3)
            go = gr.Button(f"{name}: all" if values else name, min_width=80)
            stop = gr.Button("Stop", min_width=80)
        outputs = [gr.HTML(), gr.File(label="GIF, MP4", visible=False)]
    on(go.click, calls.sheet, [gr.State(name), gr.State(), *rest], outputs, name, stop)
    if one is not None:
        inputs = [gr.State(name), one, *rest]
        on(one.release, calls.sheet, inputs, outputs, f"{name}_at", stop)
    return column


def chosen(event: gr.SelectData) -> int:
    """The number of the picture that is clicked on."""
    return event.index
