"""What the report looks like, in light and in dark."""

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1a1a19; --soft: #5f5e5a; --line: #dddcd6; --panel: #f3f2ee;
  --series-0: #2a78d6; --series-1: #c8541f; --series-2: #12805c; --series-3: #7a4fd0; --series-4: #a06a00;
  --series-5: #b83a78; --good: #12805c; --bad: #b3261e;
  --part-draft: #b0561a; --part-verify: #3f669e; --part-accept: #2c7a5a; --part-host: #75736c; }
@media (prefers-color-scheme: dark) { :root { --page: #1a1a19; --ink: #efeee9; --soft: #b0aea6; --line: #3d3c39;
  --panel: #262624; --series-0: #5fa2ee; --series-1: #f08a5d; --series-2: #45bd92; --series-3: #aa8bf0;
  --series-4: #d9a441; --series-5: #e87fb0; --good: #45bd92; --bad: #f2786f;
  --part-draft: #f0a06a; --part-verify: #86b0ea; --part-accept: #62c9a0; --part-host: #b5b3aa; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin-bottom: .3rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
.verdict { border-left: 5px solid var(--good); background: var(--panel); padding: .9rem 1.1rem; }
.verdict.none { border-color: var(--bad); }
.verdict b { font-size: 1.9rem; display: block; line-height: 1.2; }
.soft, figcaption { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); paint-order: stroke; stroke: var(--page);
  stroke-width: 3px; stroke-linejoin: round; }
.small svg text { font-size: 9px; } svg .title { fill: var(--ink); }
svg .inside { fill: var(--page); stroke: none; } svg .cell { fill: var(--ink); stroke: none; }
svg .big { font-size: 13px; font-weight: 600; } .tile { fill: none; stroke: var(--line); }
summary { cursor: pointer; color: var(--soft); } ul { padding-left: 1.2rem; } .broad { max-width: 48rem; }
.roof { stroke: var(--ink); stroke-width: 1.5; fill: none; } .leader { stroke: var(--line); }
.grid, .axis { stroke: var(--line); } .level { stroke: var(--soft); stroke-dasharray: 4 3; }
.interval { stroke: var(--mark); stroke-width: 2; } .mark, .bar { fill: var(--mark); }
.curve, .noise, .kept { stroke: var(--mark); fill: none; } .curve { stroke-width: 2; stroke-linejoin: round; }
.noise { opacity: .35; } .kept { stroke-width: 1.5; } .joint { stroke: var(--mark); stroke-dasharray: 1 3; }
.level.own { stroke: var(--mark); } svg .own { fill: var(--mark); }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .35rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; } td.text, th.text { text-align: left; }
tr.chosen td { font-weight: 700; } .bad { color: var(--bad); font-weight: 700; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin-left: 1.2rem; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: 12px; }
"""
