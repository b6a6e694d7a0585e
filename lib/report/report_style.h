#pragma once
// Style sheet of a report: system fonts, one column of text, light or dark according to the reader's system.

namespace nacre::training {

inline constexpr const char* report_style = R"css(
:root {
  color-scheme: light dark;
  --page: #fdfdfb; --ink: #1d1d1b; --soft: #62625c; --rule: #dcdcd4; --panel: #f4f4ef; --note: #8a4b00;
  --blue: #1f63b5; --orange: #c05a00; --green: #17795e; --violet: #7a4fa3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151618; --ink: #e6e4de; --soft: #a3a19a; --rule: #36373b; --panel: #1e1f22; --note: #f0b36a;
    --blue: #74abf0; --orange: #f09a52; --green: #5cc4a4; --violet: #bd9be0;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1rem; font-weight: 650; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule);
  font-weight: 650; }
h3 { font-size: 1rem; margin: 2rem 0 0; font-weight: 650; }
h3 + p { margin: 0 0 .6rem; }
p, .notes { max-width: 44rem; }
small, figcaption, .none, footer { color: var(--soft); }
figcaption { font-size: .9rem; line-height: 1.45; margin-bottom: .4rem; }
figcaption b { color: var(--ink); display: block; font-weight: 600; }
.notes { border-left: 3px solid var(--note); padding: .1rem 0 .1rem 1rem; margin-left: 0; list-style: none; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem 1.5rem; margin: 1.5rem 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
dd small { font-size: .85rem; }
.charts, .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 2rem 2.5rem; }
.pair { gap: 1rem 1.5rem; }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 13px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .y { text-anchor: end; }
svg .x { text-anchor: middle; }
svg .grid { stroke: var(--rule); fill: none; }
svg .axis { stroke: var(--soft); fill: none; }
svg .line { stroke: var(--c); stroke-width: 1.75; fill: none; stroke-linejoin: round; }
svg circle { fill: var(--c); stroke: var(--page); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .3rem 0 0; padding: 0;
  font-size: .85rem; }
.legend li::before { content: ""; display: inline-block; width: 1rem; height: 3px; margin-right: .4rem;
  vertical-align: .25em; background: var(--c); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; vertical-align: bottom; }
th small { display: block; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 8rem; }
table.narrow { width: auto; }
table.narrow th:first-child, table.narrow td:first-child { min-width: 5rem; }
tfoot td { font-weight: 650; border-bottom: 0; }
img { display: block; width: 100%; aspect-ratio: 12 / 5; background: #000; border-radius: 3px; }
audio { display: block; width: 100%; height: 2.5rem; margin-top: .5rem; }
details { margin: 1.5rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--panel); padding: 1rem; overflow-x: auto;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 3rem; font-size: .85rem; }
@media print { details { display: none; } }
)css";

}  // namespace nacre::training
