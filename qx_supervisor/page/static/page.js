// The page: it asks for what its address says, shows that, and asks again when it is told that something has changed.
// All text is set as text; nothing is ever parsed as HTML.
"use strict";

const TABS = ["runs", "drivers", "hosts", "leases", "budgets", "deaths"];
const FILTERS = ["q", "since", "state", "by", "host", "program", "label", "backend", "pid"];
const SINCE = "7d";
const STATES = [
  ["open", "not over"], ["live", "live"], ["ending", "ending"], ["waiting", "waiting"], ["orphan", "orphan"],
  ["reaping", "reaping"], ["pending", "pending"], ["elsewhere", "elsewhere"], ["finished", "finished"],
  ["failed", "failed"], ["cancelled", "cancelled"], ["detached", "detached"], ["expired", "expired"],
];
const ENDED_BY = [
  ["watcher,reap,reaper", "whoever found its driver dead"], ["program", "its program"], ["signal", "a signal"],
  ["watcher", "its watcher"], ["reap", "reap"], ["reaper", "a reaper"], ["someone else", "someone else"], ["IBM", "IBM"],
];
const KINDS = [
  ["finished", "finished"], ["failed", "failed"], ["cancelled", "cancelled"], ["death", "cancelled after a death"],
  ["open", "not over"],
];
const LEAST_PAUSE = 1000; // ms between two requests that nobody has asked for with a key or the mouse
const ASK_ANYWAY = 10000; // ms between two requests where no events can be had
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const filter = $("filter");

let shown = null; // the latest answer
let skew = 0; // seconds that the ledger's clock is ahead of this one
let running = null; // the request under way
let isWanted = false; // another one is to follow it
let loadedAt = 0;
let events = null;
let fallback = 0;
let opener = null; // what had the focus when the details were opened
let rowsOf = null; // the query whose rows are shown
let areRowsAwaited = true; // others are under way
let keyed = []; // what keys are to do with those, once they are there

// Elements -----------------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Words --------------------------------------------------------------------------------------------------------------

const now = () => Date.now() / 1000 + skew;

function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  for (const [unit, letter] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (whole >= 2 * unit) return `${Math.floor(whole / unit)}${letter}`;
  }
  return `${whole}s`;
}

const two = (number) => String(number).padStart(2, "0");

function moment(seconds) {
  const at = new Date(seconds * 1000);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

function hour(seconds, size) {
  const at = new Date(seconds * 1000);
  const day = at.toLocaleDateString("en", { month: "short", day: "numeric" });
  return size < 10800 ? `${two(at.getHours())}:${two(at.getMinutes())}` : day;
}

function qpu(seconds) {
  if (!seconds) return seconds === 0 ? "0 s" : "";
  if (seconds < 1) return `${seconds.toPrecision(2)} s`;
  return `${seconds.toLocaleString("en", { maximumFractionDigits: seconds < 100 ? 1 : 0 })} s`;
}

function cost(row) {
  if (row.charged !== null) return qpu(row.charged);
  return row.estimated === null || row.estimated === undefined ? "" : `~${qpu(row.estimated)}`;
}

const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

// The address --------------------------------------------------------------------------------------------------------

const query = () => new URLSearchParams(location.search);

function address(changes) {
  const found = query();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "" || (name === "since" && value === SINCE) || (name === "page" && value === 1)
      || (name === "tab" && value === TABS[0])) found.delete(name);
    else found.set(name, value);
  }
  const text = found.toString();
  return text ? `?${text}` : location.pathname;
}

function go(changes, { replaces = false } = {}) {
  history[replaces ? "replaceState" : "pushState"](null, "", address(changes));
  follow();
}

function listed() {
  const found = query();
  found.delete("run"); // the details are beside the rows
  return found.toString();
}

// Until the answer comes, the rows are those of what was looked at before: a key does not mean these. If it failed to
// come, and is not asked for again yet, a key means nothing.
function withRows(act) {
  if (!areRowsAwaited) act();
  else if (running) keyed.push(act);
}

function rowsAreThere() {
  areRowsAwaited = false;
  while (keyed.length && !areRowsAwaited) keyed.shift()(); // which may ask for others
}

function follow() {
  areRowsAwaited = areRowsAwaited || listed() !== rowsOf;
  fillFilter();
  load(true);
  showDetails();
}

// The filter ---------------------------------------------------------------------------------------------------------

function options(select, pairs, any) {
  const wanted = query().get(select.name) || "";
  const all = [["", any], ...pairs];
  if (wanted && !all.some(([value]) => value === wanted)) all.push([wanted, wanted]);
  const key = JSON.stringify(all);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...all.map(([value, text]) => make("option", { value }, text)));
  }
  select.value = wanted;
  select.classList.toggle("set", wanted !== "");
}

function fillFilter() {
  const found = query();
  if (document.activeElement !== filter.q) filter.q.value = found.get("q") || "";
  const since = found.get("since") || SINCE;
  if (![...filter.since.options].some((option) => option.value === since)) filter.since.add(new Option(since, since));
  filter.since.value = since;
  options(filter.state, STATES, "any");
  options(filter.by, ENDED_BY, "anybody");
  const choices = shown ? shown.choices : {};
  for (const name of ["host", "program", "label", "backend"]) {
    options(filter[name], (choices[name] || []).map((value) => [value, value]), "any");
  }
  const pid = found.get("pid") || "";
  if (document.activeElement !== filter.pid) filter.pid.value = pid;
  $("pid-label").hidden = !pid && document.activeElement !== filter.pid;
  $("clear").disabled = !FILTERS.some((name) => found.get(name));
}

let typing = 0;
filter.addEventListener("input", (event) => {
  if (event.target.tagName !== "INPUT") return;
  clearTimeout(typing);
  typing = setTimeout(() => go({ [event.target.name]: event.target.value.trim(), page: null }, { replaces: true }), 150);
});
filter.addEventListener("change", (event) => {
  if (event.target.tagName === "SELECT") go({ [event.target.name]: event.target.value, page: null });
});
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.tagName !== "INPUT" || event.isComposing) return;
  event.preventDefault();
  clearTimeout(typing);
  const value = event.target.value.trim();
  if (value !== (query().get(event.target.name) || "")) go({ [event.target.name]: value, page: null }, { replaces: true });
  const field = event.target;
  if (areRowsAwaited) field.blur(); // the keys that follow are for the rows, not to be typed into it
  withRows(() => {
    if (lines().length) focusLine(0);
    else field.focus();
  });
});
$("clear").addEventListener("click", () => {
  filter.q.value = "";
  go(Object.fromEntries([...FILTERS, "page"].map((name) => [name, null])));
  filter.q.focus();
});

// Requests -----------------------------------------------------------------------------------------------------------

async function ask(path, init = {}) {
  const answer = await fetch(path, { ...init, headers: { Accept: "application/json", ...(init.headers || {}) } });
  if (answer.status === 401) {
    location.reload(); // which leads to the login
    throw new Error("the page asks for its token");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error || `the page answered ${answer.status}`);
  return content;
}

function load(isAsked) {
  if (running) {
    if (!isAsked) {
      isWanted = true;
      return;
    }
    running.abort();
  }
  const here = (running = new AbortController());
  isWanted = false;
  const wanted = listed();
  ask(`/api/view?${wanted}`, { signal: here.signal }).then((answer) => {
    if (running !== here) return;
    loadedAt = Date.now();
    shown = answer;
    rowsOf = wanted;
    skew = answer.now ? answer.now - Date.now() / 1000 : skew;
    render();
    rowsAreThere();
    if (!isAsked && detailed) showDetails(true);
    if (!events || events.readyState !== EventSource.OPEN) tellLive(events ? "waiting" : "asking");
    finish(here);
  }, (error) => {
    if (running !== here) return;
    if (error.name !== "AbortError") {
      keyed = [];
      areRowsAwaited = listed() !== rowsOf;
      tellTrouble(error instanceof TypeError ? "The page can't be reached: its server has ended, or the way to it is broken. It is tried again." : `${error.message}.`);
      if (error instanceof TypeError) tellLive("lost");
    }
    finish(here);
  });
}

function finish(here) {
  if (running === here) running = null;
  if (isWanted) setTimeout(() => isWanted && load(false), Math.max(0, LEAST_PAUSE - (Date.now() - loadedAt)));
}

function tellTrouble(text) {
  $("trouble").hidden = !text;
  setText($("trouble"), text);
}

const LIVE = { live: "live", waiting: "connecting …", lost: "connection lost, trying again", asking: "every 10 s", away: "paused" };

function tellLive(state) {
  $("live").dataset.state = state;
  setText($("live"), LIVE[state]);
}

// Events -------------------------------------------------------------------------------------------------------------

function listen() {
  clearTimeout(fallback);
  if (events) events.close();
  const here = (events = new EventSource("/api/events"));
  here.addEventListener("open", () => tellLive("live"));
  here.addEventListener("change", () => {
    if (Date.now() - loadedAt >= LEAST_PAUSE) load(false);
    else if (!running && !isWanted) {
      isWanted = true;
      finish(null);
    } else isWanted = true;
  });
  here.addEventListener("error", () => {
    if (events !== here) return;
    if (here.readyState !== EventSource.CLOSED) {
      tellLive("lost"); // the browser tries again by itself
      return;
    }
    events = null; // refused: there are too many who listen, or the token is asked for
    tellLive("asking");
    fallback = setTimeout(() => {
      load(false);
      listen();
    }, ASK_ANYWAY);
  });
}

function rest() {
  isWanted = false; // whoever looks again gets all of it anew
  clearTimeout(fallback);
  if (events) events.close();
  events = null;
  tellLive("away");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) rest();
  else {
    load(false);
    listen();
  }
});
addEventListener("pagehide", rest);
addEventListener("pageshow", (event) => event.persisted && !document.hidden && (load(false), listen()));
addEventListener("popstate", follow);

// What is shown ------------------------------------------------------------------------------------------------------

function render() {
  const what = shown.trouble || (shown.most
    ? `Only the latest ${shown.most.toLocaleString("en")} runs are shown: the ledger has more.` : "");
  tellTrouble(what);
  setText($("place"), shown.of === "all hosts" ? "all hosts of the shared ledger" : `this machine, ${shown.host}`);
  $("logout").hidden = !shown.has_token;
  fillFilter();
  renderCounts();
  renderPlots();
  renderTable();
}

function renderCounts() {
  const found = shown.counts;
  const states = (...names) => names.reduce((sum, name) => sum + (found.states[name] || 0), 0);
  const money = (seconds) => (shown.price ? `, ${(seconds * shown.price[0]).toFixed(2)} ${shown.price[1]}` : "");
  const tiles = [
    ["live", states("live", "elsewhere").toLocaleString("en")],
    ["being settled", states("ending", "waiting", "reaping", "pending").toLocaleString("en")],
    ["orphans", states("orphan").toLocaleString("en"), states("orphan") > 0],
    ["finished", states("finished", "done", "detached").toLocaleString("en")],
    ["failed", states("failed", "expired").toLocaleString("en")],
    ["cancelled", states("cancelled").toLocaleString("en")],
    ["deaths", found.deaths.toLocaleString("en")],
    [`charged${money(found.charged)}`, qpu(found.charged)],
    [`after deaths${money(found.after_death)}`, qpu(found.after_death), found.after_death > 0],
  ];
  if (found.uncharged) tiles.push(["jobs not charged yet", found.uncharged.toLocaleString("en")]);
  $("counts").replaceChildren(...tiles.map(([name, value, isBad]) =>
    make("div", { class: isBad ? "bad" : null }, make("dt", {}, name), make("dd", {}, value))));
}

const WIDTH = 340, HEIGHT = 112, LEFT = 34, BOTTOM = 16, TOP = 6;

function niceTop(most) {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 3, 5, 10].map((step) => step * power).find((step) => step >= most);
}

function plot(id, title, series, write) {
  const { begins, size } = shown.plots;
  const sums = begins.map((_, i) => series.reduce((sum, each) => sum + each.values[i], 0));
  const total = sums.reduce((a, b) => a + b, 0);
  const top = niceTop(Math.max(...sums));
  const inner = HEIGHT - BOTTOM - TOP;
  const step = (WIDTH - LEFT - 2) / begins.length;
  const hatch = `hatch-${id}`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${write(total)} in all` },
    draw("defs", {}, draw("pattern", { id: hatch, width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      draw("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 4 }))));
  for (const part of [0, 0.5, 1]) {
    const y = TOP + inner * (1 - part);
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - 2, y1: y, y2: y }));
    if (part !== 0.5) svg.append(draw("text", { x: LEFT - 4, y: y + 3.5, "text-anchor": "end" }, part ? write(top, true) : "0"));
  }
  begins.forEach((begin, i) => {
    let y = TOP + inner;
    for (const { name, values, word } of series) {
      if (!values[i]) continue;
      const high = Math.max(1, (values[i] / top) * inner);
      y -= high;
      const bar = { class: name, x: LEFT + i * step + 0.5, y, width: Math.max(1, step - 1), height: high };
      if (name === "death") bar.fill = `url(#${hatch})`;
      svg.append(draw("rect", bar, draw("title", {}, `${word}: ${write(values[i])}, ${moment(begin)}`)));
    }
  });
  const last = begins.length - 1;
  for (const [i, anchor] of [[0, "start"], [Math.round(last / 2), "middle"], [last, "end"]]) {
    const x = anchor === "start" ? LEFT : anchor === "end" ? WIDTH - 2 : LEFT + (i + 0.5) * step;
    svg.append(draw("text", { x, y: HEIGHT - 3, "text-anchor": anchor }, hour(begins[i], size)));
  }
  const legend = make("ul", { class: "legend" }, ...series.map(({ name, word, values }) =>
    make("li", {}, make("i", { class: name }), `${word} ${write(values.reduce((a, b) => a + b, 0))}`)));
  const old = $(id);
  const details = make("details", old && old.querySelector("details").open ? { open: "" } : {}, make("summary", {}, "As a table"));
  details.append(make("div", {}, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "from"),
    ...series.map(({ word }) => make("th", { scope: "col", class: "number" }, word)))), make("tbody", {},
    ...begins.map((begin, i) => [begin, i]).filter(([, i]) => sums[i]).map(([begin, i]) => make("tr", {}, make("th", { scope: "row" }, moment(begin)),
      ...series.map(({ values }) => make("td", { class: "number" }, write(values[i])))))))));
  return make("figure", { id }, make("figcaption", {}, title), svg, legend, details);
}

function renderPlots() {
  const key = JSON.stringify(shown.plots);
  if ($("plots").dataset.key === key) return;
  if ($("plots").contains(document.activeElement) && $("plots").dataset.key) return; // read it in peace
  $("plots").dataset.key = key;
  const whole = (number) => number.toLocaleString("en");
  const { runs, charged, deaths } = shown.plots;
  $("plots").replaceChildren(
    plot("plot-runs", "Runs", KINDS.map(([name, word]) => ({ name, word, values: runs[name] })), whole),
    plot("plot-charged", "QPU seconds charged", [
      { name: "alive", word: "charged", values: charged.alive },
      { name: "death", word: "charged to runs ended by a death", values: charged.death },
    ], (seconds, isShort) => (isShort ? whole(seconds) : qpu(seconds) || "0 s")),
    plot("plot-deaths", "Deaths of drivers", [{ name: "death", word: "deaths", values: deaths }], whole),
  );
}

// The table ----------------------------------------------------------------------------------------------------------

const text = (value) => ({ text: value || "" });
const number = (value) => ({ text: value, kind: "number" });
const state = (value) => ({ text: value, state: value });
const since = (at) => ({ at, tells: "age" });
const where = (row) => `${row.host}:${row.pid}`;
const ofDriver = (row) => ({ tab: null, host: row.host, pid: row.pid, page: null, run: null });

const LISTS = {
  runs: {
    word: "run",
    key: (row) => row.run,
    opens: (row) => ({ run: row.run }),
    columns: [
      ["Run", (row) => ({ text: row.run.slice(0, 8), title: row.run })],
      ["State", (row) => state(row.state)],
      ["By", (row) => text(row.by)],
      ["Began", (row) => since(row.began)],
      ["Label", (row) => text(row.label || row.key)],
      ["Program", (row) => text(row.program)],
      ["Driver", (row) => text(where(row))],
      ["Job", (row) => text(row.jobs.length > 1 ? `${row.jobs[0]} +${row.jobs.length - 1}` : row.jobs[0] || row.session)],
      ["Backend", (row) => text(row.backend)],
      ["Cost", (row) => number(cost(row))],
      ["Detail", (row) => text(row.detail)],
    ],
  },
  drivers: {
    word: "driver",
    key: (row) => `${where(row)} ${row.began}`,
    opens: ofDriver,
    columns: [
      ["Driver", (row) => text(where(row))],
      ["State", (row) => state(row.state)],
      ["Program", (row) => ({ text: row.program, title: row.command })],
      ["Runs", (row) => number(row.runs.toLocaleString("en"))],
      ["In flight", (row) => number(row.open.toLocaleString("en"))],
      ["Charged", (row) => number(qpu(row.charged))],
      ["First run", (row) => since(row.began)],
      ["Last word", (row) => since(row.written)],
      ["Labels", (row) => text(row.labels.join(", "))],
    ],
  },
  hosts: {
    word: "host",
    key: (row) => row.host,
    opens: (row) => ({ tab: "drivers", host: row.host, page: null }),
    columns: [
      ["Host", (row) => text(row.host)],
      ["State", (row) => state(row.state)],
      ["Drivers", (row) => number(row.drivers.toLocaleString("en"))],
      ["Of them live", (row) => number(row.living.toLocaleString("en"))],
      ["Runs", (row) => number(row.runs.toLocaleString("en"))],
      ["In flight", (row) => number(row.open.toLocaleString("en"))],
      ["Deaths", (row) => number(row.deaths.toLocaleString("en"))],
      ["Charged", (row) => number(qpu(row.charged))],
      ["Last word", (row) => since(row.written)],
    ],
  },
  leases: {
    word: "lease",
    key: where,
    columns: [
      ["Holder", (row) => text(`${row.kind} ${where(row)}`)],
      ["Runs", (row) => number(row.runs.toLocaleString("en"))],
      ["Left", (row) => ({ at: row.until, tells: "left", kind: "number" })],
      ["Keys", (row) => text(row.keys.join(", "))],
    ],
  },
  budgets: {
    word: "budget",
    key: (row) => `${row.per} ${row.label} ${row.instance}`,
    columns: [
      ["Limit", (row) => text(`${qpu(row.seconds)}${row.per ? ` per ${row.per}` : ""}`)],
      ["Used", (row) => ({ meter: (row.spent + row.reserved) / row.seconds, text: `${Math.round((100 * (row.spent + row.reserved)) / row.seconds)} %` })],
      ["Spent", (row) => number(qpu(row.spent))],
      ["Reserved", (row) => number(qpu(row.reserved))],
      ["Left", (row) => number(qpu(row.left))],
      ["Begins anew", (row) => (row.until === null ? text("never") : { at: row.until, tells: "in" })],
      ["Label", (row) => text(row.label || "all")],
      ["Instance", (row) => text(row.instance || "all")],
      ["Largest", (row) => text(row.largest.map(([name, seconds]) => `${name} ${qpu(seconds)}`).join(", "))],
    ],
  },
  deaths: {
    word: "death",
    key: (row) => row.run,
    opens: ofDriver,
    columns: [
      ["Driver", (row) => text(where(row))],
      ["Died", (row) => since(row.at)],
      ["How", (row) => text(row.how || "died")],
      ["Program", (row) => text(row.program)],
      ["Runs in flight", (row) => number(row.runs.toLocaleString("en"))],
      ["Jobs", (row) => text(Object.entries(row.jobs).map(([word, jobs]) => `${jobs} ${word || "open"}`).join(", "))],
      ["By", (row) => text(row.by)],
      ["Took", (row) => number(row.seconds === null ? "" : `${row.seconds.toPrecision(2)} s`)],
      ["Charged", (row) => number(row.charged === null ? "" : qpu(row.charged))],
      ["State", (row) => state(row.state)],
    ],
  },
};

const FILTERED = "Nothing matches the search and the filters; Clear removes them.";

const EMPTY = {
  runs: "No run is known of this time; qx-supervisor demo makes one.",
  leases: "Nobody has a lease: a run has one while it is in flight, if it has a key or there is a shared ledger.",
  budgets: "No budget is set; set one: qx-supervisor budget set --seconds 600 --per month",
  deaths: "No driver has died with a run in flight.",
};

function tell(how, at) {
  const seconds = at - now();
  if (how === "age") return age(-seconds);
  if (how === "in") return `in ${age(seconds)}`;
  return seconds >= 0 ? `${Math.ceil(seconds)} s` : `ran out ${age(-seconds)} ago`;
}

function fill(cell, found, href) {
  const key = JSON.stringify([found, href]);
  if (cell.dataset.key === key) return;
  cell.dataset.key = key;
  cell.className = found.kind || "";
  let inner;
  if (found.at !== undefined) {
    inner = make("time", { datetime: new Date(found.at * 1000).toISOString(), title: moment(found.at), "data-at": found.at, "data-tells": found.tells },
      tell(found.tells, found.at));
  } else if (found.meter !== undefined) {
    inner = make("span", {}, make("meter", { min: 0, max: 1, high: 0.9, optimum: 0, value: Math.min(1, found.meter), "aria-label": "used" }), ` ${found.text}`);
  } else if (found.state !== undefined) {
    inner = make("span", { class: `state ${found.state}` }, found.text);
  } else {
    inner = found.text;
    if (found.title || (found.text && found.text.length > 24)) cell.title = found.title || found.text;
  }
  if (!href) cell.replaceChildren(inner);
  else if (cell.firstChild && cell.firstChild.tagName === "A") {
    cell.firstChild.setAttribute("href", href); // the same element, which may have the focus
    cell.firstChild.replaceChildren(inner);
  } else cell.replaceChildren(make("a", { href }, inner));
}

function renderTable() {
  const { tab, table } = shown;
  const list = LISTS[tab];
  for (const name of TABS) {
    const button = $(`tab-${name}`);
    button.setAttribute("aria-selected", String(name === tab));
    button.tabIndex = name === tab ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `tab-${tab}`);
  const head = $("table").tHead, body = $("table").tBodies[0];
  if (head.dataset.tab !== tab) {
    head.dataset.tab = tab;
    head.replaceChildren(make("tr", {}, ...list.columns.map(([name, cell]) => make("th", { scope: "col" }, name))));
    body.replaceChildren();
  }
  const wanted = new Set(table.rows.map(list.key));
  for (const line of [...body.rows]) if (!wanted.has(line.dataset.key)) line.remove();
  // What stays is not moved where that can be helped: an element that is moved loses the focus.
  const there = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let place = body.firstElementChild;
  for (const row of table.rows) {
    const key = list.key(row);
    let line = there.get(key);
    if (!line) {
      line = make("tr", { "data-key": key, class: list.opens ? "opens" : null }, ...list.columns.map(() => make("td")));
    }
    list.columns.forEach(([, cell], i) => fill(line.cells[i], cell(row), i === 0 && list.opens ? address(list.opens(row)) : null));
    if (line === place) place = place.nextElementSibling;
    else body.insertBefore(line, place);
  }
  const first = body.rows[0];
  if (first) {
    list.columns.forEach((_, i) => head.rows[0].cells[i].classList.toggle("number", first.cells[i].className === "number"));
  }
  const from = (table.page - 1) * 200 + 1;
  const isNarrowed = !["leases", "budgets"].includes(tab) && !$("clear").disabled;
  setText($("caption"), table.total === 0 ? (isNarrowed ? FILTERED : EMPTY[tab] || "There is nothing of this kind.")
    : table.pages > 1 ? `${count(table.total, list.word)}, ${from.toLocaleString("en")} to ${(from + table.rows.length - 1).toLocaleString("en")}`
      : count(table.total, list.word));
  $("pages").hidden = table.pages === 1;
  $("earlier").disabled = table.page <= 1;
  $("later").disabled = table.page >= table.pages;
  setText($("which"), `Page ${table.page} of ${table.pages}`);
}

setInterval(() => {
  if (document.hidden) return;
  for (const each of document.querySelectorAll("time[data-at]")) setText(each, tell(each.dataset.tells, Number(each.dataset.at)));
}, 1000);

function turn(by) {
  if (!shown) return;
  const page = shown.table.page + by;
  if (page >= 1 && page <= shown.table.pages) {
    go({ page });
    $("table").scrollIntoView();
  }
}

$("earlier").addEventListener("click", () => withRows(() => turn(-1)));
$("later").addEventListener("click", () => withRows(() => turn(1)));
for (const name of TABS) $(`tab-${name}`).addEventListener("click", () => go({ tab: name, page: null, run: null }));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !shown) return;
  event.preventDefault();
  const next = TABS[(TABS.indexOf(query().get("tab") || TABS[0]) + by + TABS.length) % TABS.length];
  go({ tab: next, page: null, run: null });
  $(`tab-${next}`).focus();
});

$("table").addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  const link = row && row.querySelector("a");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || String(getSelection())) return;
  event.preventDefault();
  opener = link.closest("tr").dataset.key;
  history.pushState(null, "", link.getAttribute("href"));
  follow();
});

// Details ------------------------------------------------------------------------------------------------------------

let detailed = "";

async function showDetails(isNews = false) {
  const run = query().get("run") || "";
  const before = detailed;
  detailed = run;
  if (!run) {
    const had = $("details").contains(document.activeElement);
    $("details").hidden = true;
    if (before && had) focusKey(opener || before);
    return;
  }
  if (before !== run) $("cancel-said").textContent = "";
  let found;
  try {
    found = await ask(`/api/run?run=${encodeURIComponent(run)}`);
  } catch (error) {
    if (detailed === run) tellTrouble(`${error.message}.`);
    return;
  }
  if (detailed !== run) return;
  const key = JSON.stringify(found);
  if ($("details").dataset.key !== key) fillDetails(run, found); // else what has the focus there keeps it
  $("details").dataset.key = key;
  $("details").hidden = false;
  if (!isNews && before !== run) $("details-title").focus();
}

function fillDetails(run, found) {
  setText($("details-title"), `Run ${run}`);
  const fields = Object.entries(found.run).filter(([name, value]) => name !== "run" && value !== null && value !== "" && String(value) !== "" && !(typeof value === "object" && Object.keys(value).length === 0));
  $("fields").replaceChildren(...fields.flatMap(([name, value]) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, said(value))]));
  $("cancels").replaceChildren(...found.cancel.map((job) => {
    const isRunning = found.cancelling.includes(job);
    const button = make("button", { type: "button", class: "danger", "data-job": job }, isRunning ? `Cancelling ${job} …` : `Cancel job ${job} …`);
    button.disabled = isRunning;
    button.addEventListener("click", () => cancel(job, found.run));
    return button;
  }));
  $("log").hidden = found.log.length === 0;
  $("log").querySelector("ol").replaceChildren(...found.log.map((line) =>
    make("li", {}, make("time", { datetime: line.time }, String(line.time).slice(11, 23)), `${line.job ? `${line.job}: ` : ""}${line.message}`)));
}

function said(value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, what]) => (what ? `${name}: ${what}` : name)).join(", ");
  return String(value);
}

$("close-details").addEventListener("click", () => {
  $("close-details").focus();
  go({ run: null });
});

async function cancel(job, run) {
  const of = run.label ? `, “${run.label}”` : "";
  setText($("ask-text"), `Job ${job}${of} of ${run.program || "a program"} (process ${run.pid} on ${run.host})`);
  $("ask").returnValue = "";
  $("ask").showModal();
  await new Promise((resolve) => $("ask").addEventListener("close", resolve, { once: true }));
  if ($("ask").returnValue !== "yes") return;
  setText($("cancel-said"), `Job ${job}: cancelling, and waiting for confirmation …`);
  try {
    const done = await ask("/api/cancel", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ job }) });
    setText($("cancel-said"), `Job ${done.job}: ${done.sentence}.`);
  } catch (error) {
    setText($("cancel-said"), `Job ${job}: ${error.message}.`);
  }
  load(true);
  showDetails(true);
}

// Keys ---------------------------------------------------------------------------------------------------------------

const lines = () => [...document.querySelectorAll("#table tbody tr")];

function focusLine(index) {
  const all = lines();
  const line = all[Math.max(0, Math.min(all.length - 1, index))];
  if (!line) return;
  const link = line.querySelector("a");
  if (!link) line.tabIndex = -1;
  (link || line).focus();
  line.scrollIntoView({ block: "nearest" });
}

function focusKey(key) {
  const index = lines().findIndex((line) => line.dataset.key === key);
  focusLine(index < 0 ? 0 : index);
}

function move(by) {
  const here = lines().findIndex((line) => line.contains(document.activeElement));
  focusLine(here < 0 ? 0 : here + by);
}

const ON_ROWS = ["j", "k", "g", "G", "n", "p", "ArrowDown", "ArrowUp", "Enter", "Shift"];

function openLine() {
  const link = document.activeElement.closest("#table tbody a");
  if (link) link.click();
}

document.addEventListener("keydown", (event) => {
  if (!ON_ROWS.includes(event.key)) keyed = []; // it leads elsewhere
}, { capture: true });
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#earlier, #later")) keyed = []; // so does a click, but on what turns over the pages
}, { capture: true });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const isField = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (isField) event.target.blur();
    else if (query().get("run")) go({ run: null });
    return;
  }
  if (isField) return;
  const isLine = event.target.closest && event.target.closest("#table tbody");
  const acts = {
    "/": () => { filter.q.focus(); filter.q.select(); },
    "?": () => $("help").showModal(),
    j: () => withRows(() => move(1)),
    k: () => withRows(() => move(-1)),
    g: () => withRows(() => focusLine(0)),
    G: () => withRows(() => focusLine(Infinity)),
    n: () => withRows(() => turn(1)),
    p: () => withRows(() => turn(-1)),
  };
  if (keyed.length) acts.Enter = () => withRows(openLine); // the line that these lead to, not what has the focus yet
  if (isLine) Object.assign(acts, { ArrowDown: acts.j, ArrowUp: acts.k });
  TABS.forEach((name, i) => { acts[String(i + 1)] = () => { go({ tab: name, page: null, run: null }); $(`tab-${name}`).focus(); }; });
  if (Object.hasOwn(acts, event.key)) {
    event.preventDefault();
    acts[event.key]();
  }
});
$("show-help").addEventListener("click", () => $("help").showModal());

// ---------------------------------------------------------------------------------------------------------------------

fillFilter();
load(true);
showDetails();
if (document.hidden) tellLive("away");
else listen();
