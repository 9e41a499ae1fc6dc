"""The page: its fields and its four tabs, bound to what they call."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from diffusion_jax.build import ConfigError
from diffusion_jax.studio import bounds, html, lab
from diffusion_jax.studio.calls import Calls
from diffusion_jax.studio.desk import Form

KEPT = 3600
"""Seconds for which what was made, or sent, is kept."""
WORDS = dict(
    run="Run", classes="Classes (none: all in turn)", prompt="Text", negative="Not wanted", num="Number of each", seed="Seed",
    steps="Steps", guidance="Guidance (1 is none)", sampler="Sampler", times="Times", phi="Rescaled φ", cads="CADS s (0 is none)",
    interval="Guide only where low,high of σ/α", threshold="Dynamic threshold (0 is none)", temperature="Temperature")
NUMBERS = dict(num=(1, bounds.PICTURES, 1), steps=(1, bounds.STEPS, 1), guidance=(-10, 20, 0.1), phi=(-10, 10, 0.1),
               cads=(0, 1, 0.01), threshold=(0, 1, 0.005), temperature=(0.05, 2, 0.05))
OPEN = Form._fields.index("sampler")
"""So many fields are seen at once."""
LOOKS_LIKE = dict(theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), css=html.STYLE)
"""What `launch` is told; the default theme would ask another machine for its letters."""


def plain(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A function of the page whose errors are the library's lines."""

    def told(*values: Any) -> Iterator[Any]:
        try:
            yield from function(*values)
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return told


def on(event: Any, function: Any, inputs: Any, outputs: list[Any], name: str, stop: Any = None) -> None:
    """Binds an event to a function; what a button can stop has the device for itself, first come, first served."""
    how: dict[str, Any] = {} if stop is None else dict(concurrency_id="device", concurrency_limit=1)
    running = event(plain(function), inputs, outputs, api_name=name, show_progress="minimal", **how)
    if stop is not None:
        stopped = stop.click(None, cancels=[running], api_visibility="private")
        stopped.then(lambda: "Stopped.", outputs=outputs[0], api_visibility="private")  # then: the last look may be on its way


def field(name: str, choices: Any, **how: Any) -> Any:
    """A field of the form."""
    if name in NUMBERS:
        return gr.Slider(*NUMBERS[name][:2], step=NUMBERS[name][2], label=WORDS[name], **how)
    if name == "seed":
        return gr.Number(precision=0, minimum=0, label=WORDS[name], **how)
    if choices is None:
        return gr.Textbox(label=WORDS[name], max_length=bounds.LETTERS, lines=2 if name == "prompt" else 1, **how)
    how |= dict(multiselect=name == "classes", allow_custom_value=name in ("sampler", "times"))
    return gr.Dropdown(choices, label=WORDS[name], **how)


def build(calls: Calls) -> gr.Blocks:
    """The page itself."""
    desk, offer = calls.desk, calls.desk.offers[calls.first.run]
    with gr.Blocks(title="diffusion_jax studio", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        session, images, index = (gr.State(time_to_live=KEPT) for _ in range(3))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                fields = list(zip(Form._fields, desk.shown(calls.first), strict=True))
                form = [field(name, **how) for name, how in fields[:OPEN]]
                with gr.Accordion("How to sample", open=False):
                    form += [field(name, **how) for name, how in fields[OPEN:]]
            with gr.Column(scale=5, min_width=300):
                with gr.Tab("Make"):
                    with gr.Row():
                        go, stop = gr.Button("Make", variant="primary"), gr.Button("Stop")
                    arising = gr.HTML()
                    gallery = gr.Gallery(show_label=False, columns=4, height="auto", visible=False, elem_classes="small")
                    send = gr.Button("Edit the chosen picture")
                    again = gr.File(label="Drop a PNG of here: it fills the form", file_types=[".png"], type="binary", height=120)
                with gr.Tab("Edit"):
                    load = gr.UploadButton("Load a picture", file_types=["image"], type="binary")
                    brush = gr.Brush(colors=["#e11d48"], color_mode="fixed", default_size=24)
                    editor = gr.ImageEditor(show_label=False, sources=(), transforms=(), layers=False, brush=brush)
                    told = gr.Markdown("Load a picture, or send one from Make.")
                    strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength: how much of it is new")
                    with gr.Row():
                        paint, halt = gr.Button("Make it anew", variant="primary"), gr.Button("Stop")
                        undo, save = gr.Button("Undo"), gr.Button("Save the session")
                    painting, saved = gr.HTML(), gr.File(label="Session", visible=False)
                    to = gr.Textbox(label="Another class or text, to mix with or to go to")
                    second = gr.File(label="A second picture", type="binary", height=120, visible="interpolation" in offer.tools)
                    tools = [tool(calls, name, [session, second, to, *form]) for name in lab.EDITS]
                with gr.Tab("Lab"):
                    other = gr.Textbox(label="Another class or text, to switch to")
                    tools += [tool(calls, name, [session, second, other, *form]) for name in lab.LAB]
                with gr.Tab("Look") as look:
                    runs = gr.Dropdown(list(desk.pipes), multiselect=True, label="Runs (none: all)", visible=len(desk.pipes) > 1)
                    reports = gr.HTML()
        drawn = [session, editor, told]
        on(go.click, calls.make, form, [arising, gallery, images], "make", stop)
        on(again.upload, calls.fill, again, form, "fill")
        on(form[0].change, calls.run, form[0], [*form, *tools, second, *drawn], "run")
        on(load.upload, calls.load, [form[0], load], drawn, "load")
        on(send.click, calls.take, [images, index], drawn, "take")
        on(paint.click, calls.paint, [session, editor, strength, *form], [painting, *drawn], "paint", halt)
        on(undo.click, calls.undo, session, drawn, "undo")
        on(save.click, calls.save, session, saved, "save")
        on(look.select, calls.look, runs, reports, "look")
        on(runs.change, calls.look, runs, reports, "look_at")
        gallery.select(chosen, outputs=index, api_visibility="private")
    return blocks


def tool(calls: Calls, name: str, rest: list[Any]) -> Any:
    """The row of an edit or an experiment: a slider for one value, a button for all of them, and what it makes; `rest` are the
    inputs of `Calls.sheet` behind the value."""
    values, *_ = (lab.EDITS | lab.LAB)[name]
    with gr.Column(visible=name in calls.desk.offers[calls.first.run].tools) as column:
        with gr.Row(equal_height=False):
            slider = gr.Slider(min(values), max(values), step=0.05, label=name, scale=3) if len(values) > 1 else None
            every, stop = gr.Button(f"{name}: all" if slider else name, min_width=80), gr.Button("Stop", min_width=80)
        outputs = [gr.HTML(), gr.File(label="GIF, MP4", visible=False)]
    on(every.click, calls.sheet, [gr.State(name), gr.State(), *rest], outputs, name.replace(" ", "_"), stop)
    if slider is not None:
        on(slider.release, calls.sheet, [gr.State(name), slider, *rest], outputs, f"{name.replace(' ', '_')}_at", stop)
    return column


def chosen(event: gr.SelectData) -> int:
    """The number of the picture that is clicked on."""
    return event.index
