// A click on a heading sorts by that column, a second one the other way round; the field above filters rows.
(root) => {
  const rows = () => [...root.tBodies[0].rows], number = (text) => (text === "" ? NaN : Number(text));
  const value = (row, column) => row.cells[column].textContent.trim();
  [...root.tHead.rows[0].cells].forEach((head, column) => {
    head.addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of root.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const order = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)], [m, n] = [number(x), number(y)];
        return turn * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
      };
      root.tBodies[0].append(...rows().sort(order));
    });
  });
  const field = root.parentElement.previousElementSibling?.querySelector("input");
  field?.addEventListener("input", () => {
    for (const row of rows()) row.hidden = !row.textContent.toLowerCase().includes(field.value.toLowerCase());
  });
}
