"""The one style sheet of every page: system fonts, one accent, light and dark, phone width and paper."""

from pipelines.plots.palette import DARK, LIGHT, Palette


def _variables(palette: Palette) -> str:
    return "".join(f"--{name}:{value};" for name, value in vars(palette).items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} --gap: clamp(1rem, 2.5vw, 1.5rem); }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
    + """
*, *::before, *::after { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4.5rem; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: clamp(2.5rem, 7vw, 5rem); padding-bottom: clamp(1.25rem, 3vw, 2rem); }
header p.kicker { margin: 0 0 .6rem; color: var(--accent); font-weight: 600; font-size: .875rem; }
h1 { margin: 0; font-size: clamp(1.9rem, 5.5vw, 3rem); line-height: 1.12; letter-spacing: -.022em;
  font-weight: 700; text-wrap: balance; overflow-wrap: anywhere; }
header p.lead { margin: 1rem 0 0; max-width: 46rem; overflow-wrap: anywhere;
  color: var(--muted); font-size: clamp(1rem, 2vw, 1.15rem); }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: clamp(1rem, 2.5vw, 1.75rem); margin: 0 auto; max-width: 72rem; list-style: none;
  overflow-x: auto; scrollbar-width: none; padding: 0 clamp(1rem, 4vw, 2.5rem); }
nav a { display: block; padding: .85rem 0; color: var(--muted); text-decoration: none; font-size: .9rem;
  white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
a:focus-visible, pre:focus-visible, summary:focus-visible, div:focus-visible
  { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
section { padding: clamp(2rem, 5vw, 3.5rem) 0 0; }
h2 { margin: 0 0 .35rem; font-size: clamp(1.35rem, 3vw, 1.75rem); line-height: 1.2; letter-spacing: -.012em; }
h3 { margin: 0; font-size: 1rem; line-height: 1.35; font-weight: 650; }
section > p { max-width: 46rem; margin: .35rem 0 0; color: var(--muted); }
section > * + .block { margin-top: var(--gap); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; overflow: hidden; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); margin: 0; }
.facts div { box-shadow: 1px 1px 0 var(--line); padding: 1.1rem 1.25rem; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.facts dt { color: var(--muted); font-size: .85rem; line-height: 1.4; }
.facts dd { margin: 0 0 .2rem; font-size: clamp(1.35rem, 3.2vw, 1.75rem); font-weight: 650; line-height: 1.2;
  letter-spacing: -.015em; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts dd.warn { color: var(--warm); } .facts dd.lead { color: var(--accent); }
.figures { columns: 24rem; column-gap: var(--gap); }
figure { margin: 0; }
figure.card { padding: clamp(1rem, 2.5vw, 1.5rem) 0 .5rem; margin-bottom: var(--gap); break-inside: avoid; }
figcaption { padding: 0 clamp(1rem, 2.5vw, 1.5rem); }
figure.card img { display: block; width: 100%; height: auto; margin: .5rem auto 0; padding: 0 .5rem; }
figcaption p { margin: .25rem 0 0; color: var(--muted); font-size: .9rem; line-height: 1.5; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 1rem 1.25rem .5rem; font-weight: 650; }
th, td { padding: .6rem 1.25rem; text-align: left; vertical-align: top; unicode-bidi: isolate;
  overflow-wrap: break-word; max-width: 32rem; border-top: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; white-space: nowrap; border-top: 0; }
.number { text-align: right; white-space: nowrap; }
tr.lead td { font-weight: 650; } tr.lead td:first-child { box-shadow: inset 3px 0 0 var(--accent); }
@media (max-width: 34rem) {
  th, td { padding: .55rem .75rem; } caption { padding: .9rem .75rem .4rem; }
  .stack thead { display: none; } .stack tr { display: block; padding: .6rem 0; border-top: 1px solid var(--line); }
  .stack tbody tr:first-child { border-top: 0; }
  .stack td { display: block; border: 0; padding: .1rem .9rem; overflow-wrap: anywhere; color: var(--muted); }
  .stack td:first-child { color: var(--ink); font-weight: 600; }
}
.meter { display: inline-flex; align-items: center; gap: .6rem; }
.meter i { width: clamp(3rem, 9vw, 7rem); height: .45rem; border-radius: 9px; background: var(--line);
  overflow: hidden; flex: none; }
.meter i b { display: block; height: 100%; background: var(--accent); border-radius: 9px; }
.images { display: grid; gap: clamp(.6rem, 1.5vw, 1rem); list-style: none; margin: 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(29%, 7.5rem), 1fr)); }
.images li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  font-size: .82rem; line-height: 1.4; }
.images img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  background: var(--line); }
.images img.pixels { image-rendering: pixelated; }
.images p { margin: 0; padding: .5rem .7rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
.images small { display: block; color: var(--muted); font-size: .78rem; } .images .warn { color: var(--warm); }
.commands { padding: clamp(1rem, 2.5vw, 1.5rem); }
.commands p { margin: .25rem 0 0; color: var(--muted); font-size: .9rem; }
pre { margin: .75rem 0 0; padding: .9rem 1.1rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; overflow-x: auto; font-size: .85rem; line-height: 1.7;
  font-family: ui-monospace, "SF Mono", "Cascadia Code", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre code { display: block; width: max-content; min-width: 100%; font: inherit; user-select: all; }
.note { padding: .9rem 1.25rem; border-left: 3px solid var(--accent); border-radius: 10px; }
.note.warn { border-left-color: var(--warm); }
details > summary { cursor: pointer; padding: .9rem 1.25rem; font-weight: 600; }
footer { padding-top: clamp(2.5rem, 6vw, 4rem); padding-bottom: 3rem; color: var(--muted); font-size: .85rem; }
@media print {
  body { font-size: 10pt; background: #fff; } nav { display: none; } header { padding-top: 0; }
  .card, .images li, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .images { gap: .5rem; }
  pre { white-space: pre-wrap; } pre code { width: auto; }
}
"""
)
