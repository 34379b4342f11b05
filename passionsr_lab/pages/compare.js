// One canvas: the left picture before the line, the right one behind it; or the difference of the two.
// Drag moves the line, with shift it moves the pictures; the wheel zooms where the pointer is; two clicks reset.
(async (root, data) => {
  const find = (name) => root.querySelector(`[data-part=${name}]`);
  const [canvas, left, right, show, gain, state] = ["canvas", "left", "right", "show", "gain", "state"].map(find);
  const pen = canvas.getContext("2d"), pictures = {}, pixels = {};
  const { width, height } = data;
  for (const { name, source } of data.pictures) {
    const image = (pictures[name] = new Image());
    image.src = source;
    await image.decode();
    for (const menu of [left, right]) menu.add(new Option(name, name));
  }
  [left.value, right.value] = [data.left, data.right];
  let view = { zoom: 1, x: 0, y: 0, cut: data.at }, drag = null, shown = "", difference = null;

  const values = (name) => {
    if (!pixels[name]) {
      const own = new OffscreenCanvas(width, height).getContext("2d");
      own.drawImage(pictures[name], 0, 0, width, height);
      pixels[name] = own.getImageData(0, 0, width, height).data;
    }
    return pixels[name];
  };

  const errors = () => {  // |left - right| times the gain, every channel by itself
    const key = [left.value, right.value, gain.value].join("|");
    if (key !== shown) {
      const [a, b] = [values(left.value), values(right.value)], out = new ImageData(width, height);
      for (let i = 0; i < a.length; i++) out.data[i] = i % 4 === 3 ? 255 : Math.abs(a[i] - b[i]) * gain.value;
      difference = new OffscreenCanvas(width, height);
      difference.getContext("2d").putImageData(out, 0, 0);
      shown = key;
    }
    return difference;
  };

  const draw = () => {
    const density = window.devicePixelRatio || 1, across = canvas.clientWidth, tall = (across * height) / width;
    canvas.style.height = `${tall}px`;
    [canvas.width, canvas.height] = [across * density, tall * density];
    const scale = (canvas.width / width) * view.zoom, column = view.cut * canvas.width;
    pen.imageSmoothingEnabled = scale < 1;
    const paint = (picture, from, to) => {
      pen.save();
      pen.beginPath();
      pen.rect(from, 0, to - from, canvas.height);
      pen.clip();
      pen.drawImage(picture, -view.x * scale, -view.y * scale, width * scale, height * scale);
      pen.restore();
    };
    if (show.value === "difference") paint(errors(), 0, canvas.width);
    else {
      paint(pictures[left.value], 0, column);
      paint(pictures[right.value], column, canvas.width);
      for (const [colour, line] of [["white", 3], ["#d62728", 1.2]]) {
        [pen.strokeStyle, pen.lineWidth] = [colour, line * density];
        pen.beginPath();
        pen.moveTo(column, 0);
        pen.lineTo(column, canvas.height);
        pen.stroke();
      }
    }
    gain.parentElement.hidden = show.value !== "difference";
    find("leftname").textContent = `◀ ${left.value}`;
    find("rightname").textContent = `${right.value} ▶`;
    state.textContent = `${view.zoom.toFixed(1)}×, line at ${Math.round(100 * view.cut)} %`;
    canvas.setAttribute("aria-valuenow", Math.round(100 * view.cut));
  };

  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
  const set = (changes) => {
    view = { ...view, ...changes };
    view.zoom = clamp(view.zoom, 1, 32);
    view.cut = clamp(view.cut, 0, 1);
    view.x = clamp(view.x, 0, width - width / view.zoom);
    view.y = clamp(view.y, 0, height - height / view.zoom);
    requestAnimationFrame(draw);
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const zoom = (factor, at = { x: 0.5, y: 0.5 }) => {
    const next = clamp(view.zoom * factor, 1, 32);
    const move = (own, size, share) => own + share * (size / view.zoom - size / next);
    set({ zoom: next, x: move(view.x, width, at.x), y: move(view.y, height, at.y) });
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag = { pan: event.shiftKey || event.button === 1, from: place(event), view: { ...view } };
    if (!drag.pan) set({ cut: drag.from.x });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const at = place(event);
    if (!drag.pan) return set({ cut: at.x });
    const moved = (from, to, size) => ((from - to) * size) / view.zoom;
    set({ x: drag.view.x + moved(drag.from.x, at.x, width), y: drag.view.y + moved(drag.from.y, at.y, height) });
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drag = null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, place(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => set({ zoom: 1, x: 0, y: 0 }));
  canvas.addEventListener("keydown", (event) => {
    const step = 0.1 / view.zoom, [x, y] = event.shiftKey ? [step * width, step * height] : [0, 0];
    const keys = {
      ArrowLeft: () => set(x ? { x: view.x - x } : { cut: view.cut - 0.02 }),
      ArrowRight: () => set(x ? { x: view.x + x } : { cut: view.cut + 0.02 }),
      ArrowUp: () => y && set({ y: view.y - y }),
      ArrowDown: () => y && set({ y: view.y + y }),
      "+": () => zoom(1.25), "-": () => zoom(0.8), 0: () => set({ zoom: 1, x: 0, y: 0 }),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });
  for (const control of [left, right, show, gain]) control.addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas.parentElement);
  draw();
  root.dataset.ready = "true";
})
