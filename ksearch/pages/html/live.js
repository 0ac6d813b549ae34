/* Keeps the parts of a page at what the server has: while one types, turns a page, or a search runs. */
"use strict";
(() => {
  const EVERY_MS = 2000, TYPING_MS = 120;
  const FIGURES_MS = 6000; // they take the server 0.1 s, and what it tunes may run on the same cores
  const notice = document.getElementById("notice");
  const say = (words) => { notice.textContent = words; notice.hidden = !words; };

  /* Gives [text, tag], or null where nothing changed or nothing came; what went wrong is said on the page. */
  async function ask(url, tag, signal) {
    let answer;
    try {
      answer = await fetch(url, { headers: { "X-Ksearch": "part", ...(tag && { "If-None-Match": tag }) }, cache: "no-store", signal });
    } catch (error) {
      if (error.name !== "AbortError") say("ksearch browse does not answer; this page goes on when it does.");
      return null;
    }
    if (answer.status === 304) { say(""); return null; }
    const text = await answer.text();
    say(answer.ok ? "" : text);
    return answer.ok ? [text, answer.headers.get("ETag")] : null;
  }

  /* Puts in the parts that differ; what is open, ticked or focused there stays so. */
  function put(root, text) {
    const fresh = document.createElement("template");
    fresh.innerHTML = text;
    const kept = document.activeElement && document.activeElement.id;
    for (const part of fresh.content.querySelectorAll("[data-part]")) {
      const old = root.querySelector(`[data-part="${part.dataset.part}"]`);
      if (!old || part.dataset.part === "plots") continue;
      const opened = [...old.querySelectorAll("details")].map((each) => each.open);
      part.querySelectorAll("details").forEach((each, index) => { each.open = Boolean(opened[index]); });
      if (old.isEqualNode(part)) continue;
      const ticked = new Set([...old.querySelectorAll(":checked")].map((each) => each.value));
      part.querySelectorAll("input[type=checkbox]").forEach((each) => { each.checked = ticked.has(each.value); });
      old.replaceWith(part);
    }
    if (kept && document.activeElement === document.body) document.getElementById(kept)?.focus();
  }

  async function figures(root) {
    if (!root.dataset.figures || performance.now() - (root.drawnAt ?? -FIGURES_MS) < FIGURES_MS) return;
    root.drawnAt = performance.now();
    root.stale = false;
    const got = await ask(root.dataset.figures, root.drawn);
    if (!got) return;
    root.drawn = got[1];
    ksearch.draw(root, JSON.parse(got[0]));
  }

  function live(root) {
    let tag = null, asked = null;

    /* `url`: where the part is from now on. A later question makes an earlier one void. */
    async function refresh(url) {
      if (asked) { if (!url) return; asked.abort(); }
      if (url) { root.dataset.live = url; tag = null; }
      const mine = (asked = new AbortController());
      const got = await ask(root.dataset.live, tag, mine.signal);
      if (asked !== mine) return;
      asked = null;
      if (got) {
        tag = got[1];
        put(root, got[0]);
        root.stale = true;
        root.dispatchEvent(new Event("put"));
      }
      if (root.stale) await figures(root);
    }

    setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
    return refresh;
  }

  function search(form, root, refresh) {
    const count = document.createElement("output");
    count.className = "count";
    count.setAttribute("aria-live", "polite");
    form.append(count);
    const tell = () => { count.textContent = root.querySelector("[data-count]").dataset.count + " workloads"; };
    root.addEventListener("put", tell);
    tell();

    let shown = location.search;
    function show(params, how) {
      const path = form.dataset.search;
      const text = params.toString();
      if (how) history[how](null, "", text ? path + "?" + text : path);
      shown = location.search;
      params.set("part", "1");
      return refresh(path + "?" + params);
    }
    function typed() {
      const given = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      if (given.get("sort") === "op") given.delete("sort");
      show(given, "replaceState");
    }
    let waiting = 0;
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(typed, event.target.type === "search" ? TYPING_MS : 0);
    });
    form.addEventListener("submit", (event) => { event.preventDefault(); typed(); });

    /* Pages and orders of the same list. */
    root.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-here]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      const params = new URL(link.href).searchParams;
      fill(form, params);
      show(params, "pushState");
      if (link.rel) root.closest("section").scrollIntoView();
    });
    addEventListener("popstate", () => {
      if (location.search === shown) return; // only the place on the page changed
      const params = new URLSearchParams(location.search);
      fill(form, params);
      show(params);
    });
  }

  function fill(form, params) {
    for (const field of form.elements) {
      if (field.name && field.name !== "w") field.value = params.get(field.name) || (field.name === "sort" ? "op" : "");
    }
  }

  /* Two can be compared: a third takes the place of the first that was ticked. */
  function pick() {
    const order = [];
    document.addEventListener("change", (event) => {
      const box = event.target;
      if (box.name !== "w" || box.type !== "checkbox") return;
      const at = order.indexOf(box.value);
      if (at >= 0) order.splice(at, 1);
      if (box.checked) order.push(box.value);
      if (order.length > 2) {
        const first = order.shift();
        for (const each of document.querySelectorAll("input[name=w]:checked")) if (each.value === first) each.checked = false;
      }
    });
  }

  for (const element of document.querySelectorAll("[data-scripted=hide]")) element.hidden = true;
  document.querySelectorAll("[data-figures]").forEach(figures);
  const root = document.querySelector("[data-live]");
  if (root) {
    const refresh = live(root);
    const form = document.querySelector("[data-search]");
    if (form) search(form, root, refresh);
    pick();
  }
})();
