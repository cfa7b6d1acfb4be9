// A figure is drawn when it comes near the viewport, and Plotly runs on the first of them: the page loads quickly, and
// browsers limit the number of WebGL contexts.
const loadPlotly = () => {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
};
const draw = target => {
  observer.unobserve(target);
  if (target.dataset.begun) return;
  target.dataset.begun = "yes";
  loadPlotly();
  const {data, layout} = JSON.parse(target.nextElementSibling.textContent);
  return Plotly.newPlot(target, data, layout, {responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["resetCameraLastSave3d", "tableRotation", "select2d", "lasso2d", "autoScale2d"]})
    .then(() => { target.dataset.drawn = "yes"; });
};
const observer = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) if (isIntersecting) draw(target);
}, {rootMargin: "200px"});
const plots = document.querySelectorAll(".plot");
plots.forEach(plot => observer.observe(plot));

// On paper there is no scrolling: all curves and pictures are there.
window.addEventListener("beforeprint", () => {
  plots.forEach(draw);
  document.querySelectorAll("img[loading]").forEach(image => { image.loading = "eager"; });
});

// A click on a view enlarges its pictures in a dialog.
const dialog = document.querySelector("dialog");
document.querySelectorAll(".view").forEach(view => view.addEventListener("click", () => {
  const pictures = document.createElement("div");
  for (const image of view.querySelectorAll("img")) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = image.alt;
    figure.append(Object.assign(new Image(), {src: image.src}), caption);
    pictures.append(figure);
  }
  dialog.replaceChildren(view.querySelector("h3").cloneNode(true), pictures);
  dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
