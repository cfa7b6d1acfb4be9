// A figure is drawn when it comes near the viewport: the page loads quickly, and browsers limit the number of WebGL contexts.
const draw = target => {
  observer.unobserve(target);
  if (target.dataset.begun) return;
  target.dataset.begun = "yes";
  const contents = JSON.parse(target.nextElementSibling.textContent);
  if (target.classList.contains("chart")) drawChart(target, contents);
  else drawView(target, contents);
};
const drawView = (target, contents) => {
  // One context only: opening one takes a tenth of a second.
  const canvas = element("canvas", {tabIndex: 0}), context = canvas.getContext("webgl2", {antialias: true});
  if (context) new View3d(target, contents, canvas, context);
  else target.append(element("p", {className: "note caption", textContent: `This browser has no WebGL 2. Not shown: ${contents.alt}.`}));
};
const observer = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) if (isIntersecting) draw(target);
}, {rootMargin: "200px"});
const figures = document.querySelectorAll(".scene, .chart");
figures.forEach(figure => observer.observe(figure));

// On paper there is no scrolling: all curves and pictures are there.
window.addEventListener("beforeprint", () => {
  figures.forEach(draw);
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
