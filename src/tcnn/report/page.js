"use strict";
// The explorer: a picture, a query pixel, and where every head looks from there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("picture");
  if (!canvas) return;
  const by = (id) => document.getElementById(id);
  const MINUS = "\u2212";
  const state = { picture: 0, layer: 0, head: 0, kind: "content", held: [0.5, 0.5], over: null };
  const decoded = new Map();

  // Maps from bytes

  function bytes(text) {
    return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  }

  function unpacked(maps) {
    if (!decoded.has(maps)) {
      decoded.set(maps, maps.keys
        ? { keys: new Int32Array(bytes(maps.keys).buffer) }
        : { levels: bytes(maps.levels), tops: new Float32Array(bytes(maps.tops).buffer) });
    }
    return decoded.get(maps);
  }

  const shown = (size, step) => size.map((n) => Math.ceil(n / step));

  function weights(maps, map, pixels) {
    const { keys, levels, tops } = unpacked(maps);
    const found = new Float64Array(pixels);
    if (keys) {
      if (keys[map] >= 0) found[keys[map]] = 1;
    } else {
      for (let at = 0; at < pixels; at++) found[at] = (levels[map * pixels + at] / 255) * tops[map];
    }
    return found;
  }

  function attention(layer, head, query, kind) {
    const [rows, columns] = shown(layer.queries, layer.step);
    const pixels = shown(layer.keys, layer.step).reduce((a, b) => a * b);
    const map = head * rows * columns + query[0] * columns + query[1];
    const content = () => weights(data.pictures[state.picture].maps[layer.name], map, pixels);
    if (kind === "content") return content();
    const position = weights(layer.position, map, pixels);
    if (kind === "position") return position;
    const gate = layer.gate[head];
    return content().map((weight, at) => gate * position[at] + (1 - gate) * weight);
  }

  // What is chosen

  const layerNow = () => data.layers[state.layer];

  function queryNow() {
    const layer = layerNow();
    const place = state.over || state.held;
    return shown(layer.queries, layer.step).map((n, axis) => Math.min(n - 1, Math.floor(place[axis] * n)));
  }

  function hold(query) {
    const sizes = shown(layerNow().queries, layerNow().step);
    state.held = query.map((at, axis) => (Math.min(sizes[axis] - 1, Math.max(0, at)) + 0.5) / sizes[axis]);
    state.over = null;
  }

  const tap = (layer, head) => `(${Math.floor(head / layer.kernel[1])}, ${head % layer.kernel[1]})`;

  const figure = (value) => {
    const text = Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(3)).toString();
    return text.replace("-", MINUS);
  };

  // Drawing

  const pictures = [];

  function loaded(index) {
    if (!pictures[index]) {
      pictures[index] = new Image();
      pictures[index].onload = draw;
      pictures[index].src = data.pictures[index].pixels;
    }
    return pictures[index].complete ? pictures[index] : null;
  }

  function paint(target, map, layer, query, shade) {
    const pen = target.getContext("2d");
    const { width, height } = target;
    const picture = loaded(state.picture);
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingEnabled = !picture || picture.naturalWidth > 64;
    if (picture) pen.drawImage(picture, 0, 0, width, height);
    pen.fillStyle = `rgba(0, 0, 0, ${shade})`;
    pen.fillRect(0, 0, width, height);
    const [rows, columns] = shown(layer.keys, layer.step);
    const high = height / rows;
    const wide = width / columns;
    const top = map.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0);
    for (let at = 0; at < map.length; at++) {
      if (map[at] === 0) continue;
      const strength = Math.abs(map[at]) / top;
      pen.fillStyle = map[at] > 0 ? `rgba(255, 194, 10, ${strength})` : `rgba(86, 180, 233, ${strength})`;
      pen.fillRect((at % columns) * wide, Math.floor(at / columns) * high, wide, high);
    }
    const key = query.map((at, axis) => Math.min(at * layer.stride[axis], shown(layer.keys, layer.step)[axis] - 1));
    const thick = Math.max(2, width / 160);
    for (const [colour, line] of [["#000", 2.2 * thick], ["#fff", thick]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.strokeRect(key[1] * wide, key[0] * high, wide, high);
    }
    return top;
  }

  function draw() {
    if (!data.pictures.length) return;
    const layer = layerNow();
    const query = queryNow();
    const map = attention(layer, state.head, query, state.kind);
    paint(canvas, map, layer, query, 0.45);
    for (const [head, button] of [...by("heads").children].entries()) {
      const own = attention(layer, head, query, state.kind);
      const top = paint(button.querySelector("canvas"), own, layer, query, 0.7);
      button.querySelector(".top").textContent = `to ${figure(top)}`;
      button.setAttribute("aria-pressed", String(head === state.head));
    }
    tell(layer, query, map);
    if (by("values").open) tabulate(layer, map);
  }

  function tell(layer, query, map) {
    const picture = data.pictures[state.picture];
    const known = picture.label === null ? "" : ` of class ${picture.label}`;
    const sure = picture.predicted === null ? "" : `, taken for ${picture.predicted} (${(100 * picture.confidence).toFixed(1)} %)`;
    by("answer").textContent = `${picture.title}${known}${sure}`;
    const [, columns] = shown(layer.keys, layer.step);
    let most = 0;
    map.forEach((weight, at) => { if (Math.abs(weight) > Math.abs(map[most])) most = at; });
    const share = 1 - layer.gate[state.head];
    const coarse = layer.step > 1
      ? ` Shown is one query in ${layer.step} along each axis; a square sums ${layer.step}×${layer.step} pixels.` : "";
    const looks = map[most] === 0
      ? "All of it lies on padding."
      : `Largest ${state.kind} weight ${figure(map[most])} at row ${Math.floor(most / columns)}, column ${most % columns}.`;
    by("readout").textContent =
      `Query at row ${query[0]}, column ${query[1]} of ${shown(layer.queries, layer.step).join("×")}; ` +
      `head at tap ${tap(layer, state.head)}: gate ${figure(layer.gate[state.head])}, content share ${figure(share)}. ` +
      `${looks}${coarse}`;
  }

  function tabulate(layer, map) {
    const [rows, columns] = shown(layer.keys, layer.step);
    const table = by("values").querySelector("table");
    table.replaceChildren();
    const head = table.createTHead().insertRow();
    const cell = (row, kind, text) => {
      const made = document.createElement(kind);
      made.textContent = text;
      row.append(made);
    };
    cell(head, "th", "row");
    for (let column = 0; column < columns; column++) cell(head, "th", column);
    const body = table.createTBody();
    for (let row = 0; row < rows; row++) {
      const line = body.insertRow();
      cell(line, "th", row);
      for (let column = 0; column < columns; column++) cell(line, "td", figure(map[row * columns + column]));
    }
  }

  // Pickers

  function option(select, text, value) {
    const made = document.createElement("option");
    made.textContent = text;
    made.value = value;
    select.append(made);
  }

  function furthest(layer) {
    const shares = layer.gate.map((gate) => Math.abs(1 - gate));
    return shares.indexOf(Math.max(...shares));
  }

  function chooseLayer(index) {
    state.layer = index;
    const layer = layerNow();
    const [rows, columns] = shown(layer.keys, layer.step);
    canvas.height = Math.round((canvas.width * rows) / columns);
    by("layer").value = index;
    by("head").replaceChildren();
    by("heads").replaceChildren();
    by("heads").className = `across${Math.min(7, layer.kernel[1])}`;
    layer.gate.forEach((gate, head) => {
      option(by("head"), `tap ${tap(layer, head)}, gate ${figure(gate)}`, head);
      const button = document.createElement("button");
      button.type = "button";
      button.className = "head";
      button.setAttribute("aria-label", `Head at tap ${tap(layer, head)}, gate ${figure(gate)}`);
      const small = document.createElement("canvas");
      small.width = 160;
      small.height = Math.round((160 * rows) / columns);
      button.append(small);
      for (const [kind, text] of [["tap", tap(layer, head)], ["gate", `gate ${figure(gate)}`], ["top", ""]]) {
        const line = document.createElement("span");
        line.className = kind;
        line.textContent = text;
        button.append(line);
      }
      button.addEventListener("click", () => chooseHead(head));
      by("heads").append(button);
    });
    chooseHead(furthest(layer));
  }

  function chooseHead(head) {
    state.head = head;
    by("head").value = head;
    draw();
  }

  function choosePicture(index) {
    state.picture = index;
    by("thumbs").querySelectorAll("input")[index].checked = true;
    draw();
  }

  function addPicture(index) {
    const picture = data.pictures[index];
    const label = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "picture";
    radio.addEventListener("change", () => choosePicture(index));
    const image = document.createElement("img");
    image.src = picture.pixels;
    image.alt = picture.title + (picture.label === null ? "" : `, ${picture.label}`);
    label.append(radio, image);
    by("thumbs").append(label);
  }

  // The query

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (value) => Math.min(0.999999, Math.max(0, value));
    const layer = layerNow();
    const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map(inside);
    // The pixel of the layer's input that is pointed at, and the query nearest to it.
    const keys = shown(layer.keys, layer.step);
    const sizes = shown(layer.queries, layer.step);
    return at.map((share, axis) => {
      const query = Math.min(sizes[axis] - 1, Math.floor(Math.floor(share * keys[axis]) / layer.stride[axis]));
      return (query + 0.5) / sizes[axis];
    });
  }

  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    state.over = place(event);
    draw();
  });
  canvas.addEventListener("pointerleave", () => { state.over = null; draw(); });
  canvas.addEventListener("pointerdown", (event) => {
    state.held = place(event);
    state.over = null;
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const query = queryNow();
    hold([query[0] + move[0], query[1] + move[1]]);
    draw();
  });
  by("layer").addEventListener("change", () => chooseLayer(Number(by("layer").value)));
  by("head").addEventListener("change", () => chooseHead(Number(by("head").value)));
  document.querySelectorAll('input[name="kind"]').forEach((radio) => {
    radio.addEventListener("change", () => { state.kind = radio.value; draw(); });
  });
  by("values").addEventListener("toggle", draw);

  // Pictures of one's own, where a server computes their attention

  async function send(file) {
    by("status").textContent = `Looking at ${file.name} …`;
    try {
      const answer = await fetch("attention", { method: "POST", body: file });
      if (!answer.ok) throw new Error(await answer.text());
      const picture = await answer.json();
      picture.title = file.name;
      data.pictures.push(picture);
      addPicture(data.pictures.length - 1);
      choosePicture(data.pictures.length - 1);
      by("status").textContent = "";
    } catch (error) {
      by("status").textContent = `${file.name}: ${error.message}`;
    }
  }

  async function sendAll(files) {
    for (const file of files) await send(file);
  }

  if (data.live) {
    const drop = by("drop");
    by("file").addEventListener("change", () => sendAll([...by("file").files]));
    for (const name of ["dragenter", "dragover"]) {
      document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    document.addEventListener("dragleave", () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      sendAll([...event.dataTransfer.files]);
    });
  }

  data.layers.forEach((layer, index) => option(by("layer"), layer.name, index));
  data.pictures.forEach((_, index) => addPicture(index));
  const shares = data.layers.map((layer) => Math.abs(1 - layer.gate[furthest(layer)]));
  if (Math.max(...shares) === 0) state.kind = "position"; // a network just recast
  document.querySelector(`input[name="kind"][value="${state.kind}"]`).checked = true;
  chooseLayer(shares.indexOf(Math.max(...shares)));
  if (data.pictures.length) choosePicture(0);
})();
