"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const view = { task: 0, axis: "steps", kind: null, log: true };
  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false, // nothing leaves the page
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // Colours of the page, which has a dark mode.
  function ink(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function layoutOf(x, y, more) {
    const narrow = window.innerWidth < 700;
    const line = { gridcolor: ink("--line"), zeroline: false, linecolor: ink("--soft"), automargin: true };
    const legend = narrow ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom" } : {};
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink("--ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 55, r: 10, t: 34, b: 50 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--soft"), activecolor: ink("--ink") },
      hovermode: "closest",
      hoverlabel: { namelength: -1 },
      ...more,
      xaxis: { ...line, ...x, title: { text: x.title } },
      yaxis: { ...line, ...y, title: { text: y.title } },
      legend: { uirevision: "kept", ...legend },
    };
  }

  // Ticks at 1, 2 and 5, but for a range so short that it may hold none of them.
  function logAxis(range) {
    const ticks = range !== null && range[1] - range[0] > 0.7 ? { dtick: "D2" } : {};
    return { type: "log", tickformat: "~g", ...ticks };
  }

  // The losses that rank, until the reader chooses.
  function kindOf(task) {
    return view.kind ?? task.rank;
  }

  function drawn(task) {
    return data.optimizers.filter((optimizer) => optimizer.name in task.curves);
  }

  function scaleOf(task, curve) {
    if (view.axis === "seconds") return curve.seconds;
    return view.axis === "tokens" ? task.tokens : 1;
  }

  function translucent(color) {
    return color + "30"; // two digits of opacity
  }

  function bandTrace(optimizer, x, band) {
    return {
      x: x.concat(x.slice().reverse()),
      y: band.high.concat(band.low.slice().reverse()),
      fill: "toself",
      fillcolor: translucent(optimizer.color),
      line: { width: 0 },
      mode: "lines",
      hoverinfo: "skip",
      showlegend: false,
      legendgroup: optimizer.name,
      uid: "band " + optimizer.name,
    };
  }

  function lineTrace(optimizer, x, y, label, hover) {
    return {
      x: x,
      y: y,
      name: label,
      mode: "lines",
      line: { color: optimizer.color, dash: optimizer.dash, width: 2 },
      legendgroup: optimizer.name,
      uid: optimizer.name,
      hovertemplate: hover + "<extra>" + label + "</extra>",
    };
  }

  // Highest and lowest mean that is shown, a little room around, in the axis's own numbers.
  function rangeOf(task, values, log) {
    let shown = values.filter((value) => value !== null && (!log || value > 0));
    if (task.top !== null && shown.some((value) => value <= task.top)) {
      shown = shown.filter((value) => value <= task.top);
    }
    if (shown.length === 0) return null;
    const scaled = shown.map((value) => (log ? Math.log10(value) : value));
    const low = scaled.reduce((a, b) => Math.min(a, b));
    const high = scaled.reduce((a, b) => Math.max(a, b));
    const room = 0.04 * (high - low || Math.abs(high) || 1);
    return [low - room, high + room];
  }

  function axisOf(task, title, values) {
    const log = view.log && values.every((value) => value === null || value > 0);
    const range = rangeOf(task, values, log);
    const limits = range === null ? {} : { range: range };
    return { title: title, ...(log ? logAxis(range) : { type: "linear" }), ...limits };
  }

  function drawCurves(task) {
    const traces = [];
    let values = [];
    const titles = { steps: "steps", seconds: "seconds of one run", tokens: "tokens" };
    const what = (kindOf(task) === "train" ? "training " : "validation ") + task.what;
    for (const optimizer of drawn(task)) {
      const curve = task.curves[optimizer.name];
      const band = curve[kindOf(task)];
      const x = band.x.map((step) => step * scaleOf(task, curve));
      const note = curve.diverged ? " (diverged)" : "";
      const hover = "%{y:.4g} at %{x:,.4~g} " + view.axis + ", rate " + curve.setting;
      values = values.concat(band.mean);
      traces.push(bandTrace(optimizer, x, band));
      traces.push(lineTrace(optimizer, x, band.mean, optimizer.name + note, hover));
    }
    const x = { title: titles[view.axis], rangemode: "tozero" };
    const more = { uirevision: [view.task, view.axis, kindOf(task), view.log].join() };
    Plotly.react("curves", traces, layoutOf(x, axisOf(task, what, values), more), config);
  }

  function drawRates(task) {
    const traces = [];
    let values = [];
    for (const [place, optimizer] of drawn(task).entries()) {
      const rates = task.rates[optimizer.name];
      values = values.concat(rates.y);
      const line = lineTrace(optimizer, rates.x, rates.y, optimizer.name, "%{y:.4g} at rate %{x}");
      const best = rates.x.map((rate) => rate === rates.best);
      const marker = {
        color: optimizer.color,
        size: best.map((one) => (one ? 11 : 6)),
        symbol: best.map((one) => (one ? "circle-open" : "circle")),
        line: { width: best.map((one) => (one ? 3 : 0)) },
      };
      traces.push({ ...line, mode: "lines+markers", marker: marker });
      traces.push({
        x: rates.lost,
        y: rates.lost.map(() => 0.98 - 0.02 * place), // none hides another
        yaxis: "y2",
        mode: "markers",
        marker: { symbol: "x", color: optimizer.color, size: 8 },
        legendgroup: optimizer.name,
        showlegend: false,
        name: optimizer.name,
        uid: "lost " + optimizer.name,
        hovertemplate: "diverged at rate %{x}<extra>" + optimizer.name + "</extra>",
      });
    }
    const above = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
    const more = { yaxis2: above, uirevision: [view.task, view.log].join() };
    const y = axisOf(task, "final " + (task.rank === "train" ? "training " : "validation ") + task.what, values);
    const x = { type: "log", title: "peak learning rate", dtick: 1, tickformat: "~g" };
    Plotly.react("rates", traces, layoutOf(x, y, more), config);
  }

  function drawScores() {
    const find = (name) => data.optimizers.find((optimizer) => optimizer.name === name);
    const rows = data.scores.slice().reverse(); // the best on top
    const scores = {
      x: rows.map((row) => row.score),
      y: rows.map((row) => row.name),
      error_x: {
        type: "data",
        symmetric: false,
        array: rows.map((row) => row.high - row.score),
        arrayminus: rows.map((row) => row.score - row.low),
        color: ink("--soft"),
      },
      mode: "markers",
      marker: { size: 10, color: rows.map((row) => find(row.name).color) },
      hovertemplate: "%{x:.3f}<extra>%{y}</extra>",
    };
    const one = { type: "line", x0: 1, x1: 1, y0: 0, y1: 1, yref: "paper", layer: "below" };
    const marked = { shapes: [{ ...one, line: { color: ink("--soft"), dash: "dot", width: 1 } }] };
    const x = { title: "score (" + data.baseline + " = 1)" };
    Plotly.react("scores", [scores], layoutOf(x, { title: "" }, { ...marked, showlegend: false }), config);
    const hover = "%{y:.0%} of the runs ≥ %{x:.3g}";
    const traces = data.optimizers
      .filter((optimizer) => optimizer.name in data.profile.y)
      .map((one) => lineTrace(one, data.profile.x, data.profile.y[one.name], one.name, hover));
    const share = { title: "share of runs", range: [-0.02, 1.02], tickformat: ".0%" };
    const tau = { type: "log", title: "score τ", tickformat: "~g", nticks: 6, tickangle: 0 };
    Plotly.react("profiles", traces, layoutOf(tau, share, marked), config);
  }

  function drawTask() {
    const task = data.tasks[view.task];
    const tokens = byId("axis").querySelector("[data-choice=tokens]");
    tokens.disabled = task.tokens === null;
    if (tokens.disabled && view.axis === "tokens") view.axis = "steps";
    byId("task").value = String(view.task);
    document.querySelectorAll("section.task").forEach((section, index) => {
      section.hidden = index !== view.task;
    });
    for (const [id, choice] of [["axis", view.axis], ["kind", kindOf(task)]]) {
      for (const button of byId(id).children) {
        button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
      }
    }
    byId("log").setAttribute("aria-pressed", String(view.log));
    drawCurves(task);
    drawRates(task);
  }

  function drawAll() {
    if (byId("scores") !== null) drawScores(); // of several tasks
    drawTask();
  }

  // Sorts by numbers where there are any, otherwise by text; cells without a value come last.
  function sortBy(table, column, ascending) {
    const key = (row) => row.cells[column].dataset.value;
    const sign = ascending ? 1 : -1;
    const number = (text) => Number(text.replace("inf", "Infinity"));
    const order = (a, b) => {
      if (key(a) === undefined || key(b) === undefined) {
        return (key(a) === undefined) - (key(b) === undefined);
      }
      const difference = number(key(a)) - number(key(b));
      return sign * (Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference);
    };
    const body = table.tBodies[0];
    body.append(...Array.from(body.rows).sort(order));
  }

  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortBy(table, column, ascending);
      });
    });
  });
  for (const id of ["axis", "kind"]) {
    byId(id).addEventListener("click", (event) => {
      if (event.target.dataset.choice === undefined) return;
      view[id] = event.target.dataset.choice;
      drawTask();
    });
  }
  byId("log").addEventListener("click", () => {
    view.log = !view.log;
    drawTask();
  });
  byId("task").addEventListener("change", (event) => {
    view.task = Number(event.target.value);
    drawTask();
  });
  byId("overview")?.addEventListener("click", (event) => {
    if (event.target.dataset.task === undefined) return;
    view.task = Number(event.target.dataset.task);
    drawTask();
    byId("one-task").scrollIntoView();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.matchMedia("(max-width: 699px)").addEventListener("change", drawAll);
  drawAll();
})();
