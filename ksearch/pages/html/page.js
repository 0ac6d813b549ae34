/* Filters, sorts and draws. No page needs more; what it cannot do without a script stays readable. */
"use strict";
(() => {
  const style = () => getComputedStyle(document.documentElement);

  /* "@accent" becomes what the style sheet has for --accent. */
  function coloured(value, look) {
    if (typeof value === "string" && value[0] === "@") return look.getPropertyValue("--" + value.slice(1)).trim() || value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, look));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, look)]));
    }
    return value;
  }

  function layoutOf(variant, look) {
    const colour = (name) => look.getPropertyValue("--" + name).trim();
    const axis = (given) => ({
      gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true,
      tickfont: { color: colour("quiet"), size: 12 }, ...given,
      title: { standoff: 10, font: { color: colour("quiet"), size: 12 }, ...(given || {}).title },
    });
    const given = coloured(variant.layout, look);
    return {
      font: { family: look.getPropertyValue("--sans").trim(), color: colour("text"), size: 12 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: false,
      margin: { l: 8, r: 12, t: 8, b: 8, pad: 4 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: colour("quiet"), size: 12 } },
      hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("text"), size: 12 } },
      ...given,
      xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
    };
  }

  function drawVariant(place, variant) {
    const canvas = place.querySelector(".canvas");
    place.shown = variant;
    const look = style();
    return Plotly.react(canvas, coloured(variant.data, look), layoutOf(variant, look), {
      displayModeBar: false, responsive: true, scrollZoom: false,
    });
  }

  /* Buttons for a few ways to look at a figure, a list for many. */
  function switches(place, variants) {
    const room = place.querySelector(".switch");
    const title = place.querySelector("h2").textContent;
    room.replaceChildren();
    room.hidden = variants.length < 2;
    if (room.hidden) return 0;
    const kept = Math.max(0, variants.findIndex((variant) => place.shown && variant.label === place.shown.label));
    const choose = (index) => drawVariant(place, variants[index]);
    if (variants.length > 3) {
      const list = document.createElement("select");
      list.setAttribute("aria-label", title + ": parameter");
      variants.forEach((variant, index) => list.add(new Option(variant.label, index, false, index === kept)));
      list.addEventListener("change", () => choose(Number(list.value)));
      room.append(list);
      return kept;
    }
    room.setAttribute("role", "group");
    room.setAttribute("aria-label", title + ": show");
    variants.forEach((variant, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = variant.label;
      button.setAttribute("aria-pressed", String(index === kept));
      button.addEventListener("click", () => {
        for (const other of room.children) other.setAttribute("aria-pressed", String(other === button));
        choose(index);
      });
      room.append(button);
    });
    return kept;
  }

  /* Draws into every [data-figure] under `root` what `figures` has of that name, and again what was drawn. */
  function draw(root, figures) {
    const said = new Set();
    for (const place of root.querySelectorAll("[data-figure]")) {
      const figure = figures[place.dataset.figure];
      if (!figure) continue;
      place.hidden = !figure.variants.length && said.has(figure.empty); // why there is nothing is said once
      said.add(figure.empty);
      const canvas = place.querySelector(".canvas");
      const note = place.querySelector(".note");
      note.hidden = !figure.note;
      note.textContent = figure.note;
      place.classList.toggle("bare", !figure.variants.length);
      if (!figure.variants.length) {
        if (place.shown) Plotly.purge(canvas);
        place.shown = null;
        place.querySelector(".switch").hidden = true;
        const empty = document.createElement("p");
        empty.className = "empty";
        empty.textContent = figure.empty;
        canvas.replaceChildren(empty);
        continue;
      }
      if (!place.shown) canvas.replaceChildren();
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", place.querySelector("h2").textContent + ". " + place.querySelector("figcaption p").textContent);
      drawVariant(place, figure.variants[switches(place, figure.variants)]);
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of document.querySelectorAll("[data-figure]")) if (place.shown) drawVariant(place, place.shown);
  });

  /* Numbers by size and texts by their letters; what has no value comes last either way. */
  function sort(table, column, ascending) {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [row.cells[column].dataset.value ?? "", row]);
    const numeric = table.tHead.rows[0].cells[column].classList.contains("number") && keyed.every(([key]) => key === "" || !isNaN(key));
    const sign = ascending ? 1 : -1;
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (numeric ? a - b : a < b ? -1 : a > b ? 1 : 0);
    });
    body.append(...keyed.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, index) => {
      if (index === column) cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  }

  function makeSortable(table) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      if (!cell.dataset.sort) return; // the server sorts
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const now = cell.getAttribute("aria-sort");
        sort(table, column, now ? now === "descending" : !cell.classList.contains("number"));
      });
    });
  }

  function makeFilter(form) {
    const table = document.getElementById(form.dataset.filter);
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.replaceAll("×", "x").toLowerCase()]);
    const nothing = document.querySelector("[data-nothing]");
    function apply() {
      const given = new FormData(form);
      const words = given.get("text").toLowerCase().replaceAll("×", "x").split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of rows) {
        let fits = words.every((word) => text.includes(word));
        for (const name of ["op", "dtype", "device"]) fits &&= !given.get(name) || row.dataset[name] === given.get(name);
        row.hidden = !fits;
        shown += fits;
      }
      nothing.hidden = shown > 0;
      table.hidden = shown === 0;
      form.querySelector(".count").textContent = shown === rows.length ? rows.length + " workloads" : shown + " of " + rows.length + " workloads";
    }
    // Where the table is narrow it has no head to click on.
    const order = form.elements.sort;
    [...table.tHead.rows[0].cells].forEach((cell, column) => order.add(new Option(cell.textContent.trim(), column)));
    order.addEventListener("change", () => {
      const column = Number(order.value);
      sort(table, column, !table.tHead.rows[0].cells[column].classList.contains("number"));
    });
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  /* A static report: every workload is a hidden section that its link opens, and its figures wait as JSON. */
  function makePages(report) {
    const sections = [...report.querySelectorAll("[data-page]")];
    const title = document.title;
    function open(moved) {
      const name = decodeURIComponent(location.hash.slice(1));
      const chosen = sections.find((section) => section.dataset.page === name) || sections[0];
      for (const section of sections) section.hidden = section !== chosen;
      const waiting = chosen.querySelector("script[type='application/json']");
      if (waiting && !chosen.dataset.drawn) {
        chosen.dataset.drawn = "yes";
        const held = JSON.parse(waiting.textContent);
        const code = chosen.querySelector("[data-source]");
        if (code) code.innerHTML = held.source;
        draw(chosen, held.figures);
      }
      document.title = chosen.dataset.title ? chosen.dataset.title + " - " + title : title;
      if (moved) {
        scrollTo(0, 0);
        document.getElementById("main").focus({ preventScroll: true });
      }
    }
    addEventListener("hashchange", () => open(true));
    open(false);
  }

  window.ksearch = { draw, makeSortable, makeFilter };
  document.querySelectorAll("table.winners").forEach(makeSortable);
  document.querySelectorAll("[data-filter]").forEach(makeFilter);
  document.querySelectorAll("[data-report]").forEach(makePages);
})();
