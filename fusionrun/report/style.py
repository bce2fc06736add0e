"""The page's style sheet: light, dark, phone and print.

The colours of lines and dots are Okabe and Ito's, which the colour-blind can tell apart ("Color
universal design", 2008); shapes, dashes and words say the same.
"""

STYLE = """
:root {
  --paper: #f6f7f9; --card: #fff; --ink: #1a1f26; --muted: #5a6572; --rule: #e1e5ea;
  --fused: #0072b2; --rival: #d55e00; --strong: #eaf3fa; --warn: #fff4e0;
  --model0: #0072b2; --model1: #d55e00; --model2: #009e73;
  --model3: #b85c94; --model4: #b8860b; --model5: #56b4e9;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --card: #1b2128; --ink: #e8ecf1; --muted: #9aa6b3; --rule: #313a44;
    --fused: #56b4e9; --rival: #f28c3c; --strong: #1d3346; --warn: #3a2d14;
    --model0: #56b4e9; --model1: #f28c3c; --model2: #2fc596;
    --model3: #e29cc2; --model4: #f0c040; --model5: #9fc7ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.015em; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; overflow-wrap: anywhere; }
h3 { font-size: 1.15rem; margin: 0 0 10px; }
h4 { font-size: 0.95rem; margin: 22px 0 6px; }
p { margin: 0 0 10px; max-width: 84ch; overflow-wrap: anywhere; text-wrap: pretty; }
a { color: var(--fused); }
.brand { color: var(--muted); font-size: 0.85rem; margin: 0 0 2px; }
nav ul { list-style: none; margin: 0; padding: 0; font-size: 0.9rem; line-height: 1.9; }
nav b { margin-right: 6px; overflow-wrap: anywhere; }
nav a { margin-right: 10px; white-space: nowrap; text-decoration: none; }
nav a:hover { text-decoration: underline; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 20px 22px; margin: 0 0 16px;
}
.lead { font-size: 1.25rem; line-height: 1.4; font-weight: 600; }
.note, .legend { color: var(--muted); font-size: 0.85rem; }
.legend { max-width: none; }
.key { display: inline-block; margin: 0 14px 2px 0; }
.key svg { vertical-align: -2px; }
.warning { background: var(--warn); border-radius: 6px; padding: 8px 12px; max-width: none; }
.verdicts { list-style: none; margin: 0 0 14px; padding: 0; }
.verdicts li {
  display: grid; grid-template-columns: 22px 1fr 260px; gap: 2px 10px; align-items: center;
  padding: 6px 0; border-bottom: 1px solid var(--rule);
}
.verdicts li.axis { border-bottom: 0; color: var(--muted); font-size: 0.85rem; }
.verdicts li.axis .sentence { grid-column: 1 / 3; }
.verdicts .sentence { overflow-wrap: anywhere; text-wrap: pretty; }
.verdicts svg { width: 260px; }
.beats .mark, .mark.beats { color: var(--fused); }
.loses .mark, .mark.loses { color: var(--rival); }
.open .mark, .unknown .mark, .mark.open, .mark.unknown { color: var(--muted); }
.scroll { overflow-x: auto; margin: 0 0 6px; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { vertical-align: bottom; line-height: 1.25; font-weight: 600; color: var(--muted); }
.number { text-align: right; }
td.number { white-space: nowrap; }
.text { text-align: left; }
td.text { min-width: 8em; max-width: 26em; overflow-wrap: break-word; }
th:first-child, td:first-child {
  position: sticky; left: 0; background: var(--card); padding-left: 0;
}
td strong { background: var(--strong); border-radius: 4px; padding: 1px 4px; margin: 0 -4px; }
details { margin: 14px 0 0; }
summary { cursor: pointer; color: var(--fused); font-size: 0.9rem; }
details[open] > summary { margin-bottom: 8px; }
pre { font-size: 0.8rem; line-height: 1.45; overflow-x: auto; margin: 0; }
.gallery {
  display: grid; gap: 0 18px; margin: 8px 0 0;
  grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr));
}
figure { /* titles, pictures and captions of a line at the same height */
  display: grid; grid-row: span 3; grid-template-rows: subgrid; margin: 0 0 16px;
  max-width: 400px; min-width: 0;
}
figcaption {
  font-size: 0.85rem; font-weight: 600; align-self: end; margin: 0 0 4px; overflow-wrap: anywhere;
}
figure svg { width: 100%; }
figure .note { margin: 2px 0 0; }
svg { display: block; overflow: visible; }
.key svg { display: inline; }
svg text { font-size: 11px; fill: var(--muted); }
svg .cell { fill: var(--ink); font-weight: 600; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--rule); }
.zero { stroke: var(--muted); }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.thin { stroke-width: 1.2; }
.dashed { stroke-dasharray: 4 3; stroke-width: 1.5; }
.whisker { stroke: currentColor; stroke-width: 3; stroke-linecap: round; opacity: 0.55; }
.dot { fill: currentColor; stroke: currentColor; }
.faint { fill-opacity: 0.45; }
.hollow { fill: var(--card); stroke-width: 1.6; }
.bar { fill: currentColor; }
.heat { fill: var(--fused); }
.fused, .gain, svg .beats { color: var(--fused); }
.rival, .loss, svg .loses { color: var(--rival); }
.muted, svg .open { color: var(--muted); }
.ink { color: var(--ink); }
.model0 { color: var(--model0); } .model1 { color: var(--model1); }
.model2 { color: var(--model2); } .model3 { color: var(--model3); }
.model4 { color: var(--model4); } .model5 { color: var(--model5); }
@media (max-width: 700px) {
  main { padding: 16px 10px 40px; }
  h1 { font-size: 1.5rem; }
  section { padding: 16px 14px; }
  .verdicts li { grid-template-columns: 22px 1fr; }
  .verdicts li svg { grid-column: 2; }
  .verdicts li.axis .sentence { order: 1; grid-column: 1 / 3; }
  td.text { min-width: 7em; }
}
@media print {
  @page { margin: 14mm 12mm; }
  :root { --paper: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav, summary, details:not([open], .listing) { display: none; }
  details::details-content { content-visibility: visible; }
  section { border: 0; padding: 0; margin: 0 0 18px; border-radius: 0; }
  h2, h3, h4, figcaption, .legend, .note:has(+ .legend) { break-after: avoid; }
  figure, tr, .verdicts li { break-inside: avoid; }
  .gallery { grid-template-columns: repeat(3, 1fr); gap: 0 14px; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; width: 100%; }
  th, td { padding: 2px 4px; }
  td.text { min-width: 0; }
  pre { white-space: pre-wrap; }
}
"""
