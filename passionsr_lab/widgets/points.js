// One point per layer; a click chooses its layer.  Sizes are of the view box, which is as wide as the cell.
const NS = "http://www.w3.org/2000/svg", [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [1000, 150, 70, 10, 26];

const add = (parent, kind, values, text = "") => {
  const found = parent.appendChild(document.createElementNS(NS, kind));
  for (const [name, value] of Object.entries(values)) found.setAttribute(name, value);
  found.textContent = text;
  return found;
};

export default {
  render({ model, el }) {
    const draw = () => {
      const rows = model.get("rows"), given = rows.map((row) => row.value).filter((v) => v !== null);
      const smallest = Math.min(...given), log = smallest > 0 && Math.max(...given) > 100 * smallest;
      const at = (v) => (log ? Math.log10(v) : v), low = at(smallest), high = at(Math.max(...given));
      const last = Math.max(...rows.map((row) => row.number), 2);
      const x = (number) => LEFT + ((number - 1) / (last - 1)) * (WIDTH - LEFT - 10);
      const y = (v) => HEIGHT - BOTTOM - ((at(v) - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
      const svg = document.createElementNS(NS, "svg");
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("style", "width:100%;color:var(--jp-ui-font-color1,currentColor);font:12px sans-serif");
      for (const v of low < high ? [smallest, Math.max(...given)] : [smallest]) {
        add(svg, "text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end", fill: "currentColor" }, v.toPrecision(3));
      }
      const axis = { fill: "currentColor", y: HEIGHT - 6 };
      const title = `${model.get("title")}${log ? " (log scale)" : ""} against the layer's number`;
      add(svg, "text", { ...axis, x: WIDTH / 2, "text-anchor": "middle" }, `${title}; a click shows the layer`);
      for (const n of [1, last]) add(svg, "text", { ...axis, x: x(n), "text-anchor": "middle" }, n);
      for (const row of rows.filter((row) => row.value !== null)) {
        const chosen = row.name === model.get("chosen");
        const look = { r: chosen ? 7 : 4, fill: row.colour, "fill-opacity": row.listed ? 0.85 : 0.15 };
        const rim = { stroke: chosen ? "currentColor" : "none", "stroke-width": 2, style: "cursor:pointer" };
        const point = add(svg, "circle", { cx: x(row.number), cy: y(row.value), ...look, ...rim });
        point.dataset.layer = row.name;
        add(point, "title", {}, `${row.number}  ${row.name}: ${row.value.toPrecision(3)}`);
        point.addEventListener("click", () => {
          model.set("chosen", row.name);
          model.save_changes();
        });
      }
      el.replaceChildren(svg);
    };
    model.on("change:rows", draw);
    model.on("change:chosen", draw);
    draw();
  },
};
