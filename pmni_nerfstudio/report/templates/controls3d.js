// Switches, sliders and captions of a 3D view.
const radioGroup = (label, names, chosen) => {
  const group = element("fieldset", {className: "switch"}, element("legend", {textContent: label}));
  radioGroup.count = (radioGroup.count ?? 0) + 1;
  names.forEach((name, index) => {
    const input = element("input", {type: "radio", name: `switch-${radioGroup.count}`, checked: index == 0});
    input.addEventListener("change", () => chosen(index));
    group.append(element("label", {}, input, element("span", {textContent: name})));
  });
  return group;
};

const addControls = view => {
  const {surfaces, cameras} = view.contents, bar = element("div", {className: "bar"});
  const caption = element("p", {className: "note caption"});
  const errors = surfaces[0].errors;
  if (cameras.length) addCameraLegend(view, bar);
  else {
    const photographed = surfaces.find(surface => surface.colors)?.colors;
    const choices = [["shaded", SHADED], ...(photographed ? [[photographed.name, COLORS]] : []), ["normals", NORMALS],
      ...errors.map((error, number) => [error.name, ERRORS, number])];
    bar.append(radioGroup("Color", choices.map(([name]) => name), index => {
      [, view.coloring, view.error = 0] = choices[index];
      describe(view, caption);
      view.render();
    }));
    if (surfaces.some(surface => surface.field)) {
      bar.append(radioGroup("Show", ["mesh", "field"], index => {
        view.showsField = index == 1;
        describe(view, caption);
        view.update();
      }));
    }
    if (surfaces.length > 1) addDivider(view, bar, caption);
  }
  view.host.append(bar, caption);
  describe(view, caption);
};

// The color scale, from light (no error) to dark.
const rampBar = ramp => {
  const colors = bytes(ramp), stops = [];
  for (let i = 0; i < colors.length; i += 60) stops.push(`rgb(${colors[i]} ${colors[i + 1]} ${colors[i + 2]})`);
  const bar = element("i");
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  return bar;
};

const describe = (view, caption) => {
  const shown = [...new Set(view.shown)].map(index => view.contents.surfaces[index]);
  caption.replaceChildren();
  const withoutField = shown.filter(surface => view.showsField && !surface.field).map(surface => surface.name);
  if (view.coloring == NORMALS) caption.append("The normal's x, y and z (up) as red, green and blue. ");
  if (view.coloring == ERRORS && !(view.showsField && !withoutField.length)) {
    const {end} = shown[0].errors[view.error];
    const means = shown.map(surface => (shown.length > 1 ? `${surface.name}: ` : "") + surface.errors[view.error].mean);
    caption.append(element("span", {className: "scale"}, "0", rampBar(view.contents.ramp), end), ` ${means.join("; ")}; gray: unknown. `);
  } else if (view.coloring == COLORS && view.showsField) caption.append("Colors are known on the mesh only. ");
  else if (view.coloring == ERRORS) caption.append("Errors are known on the mesh only. ");
  if (view.showsField) caption.append("The signed distance field itself, sampled on a grid and traced ray by ray. ");
  if (withoutField.length) caption.append(`Without a field, as a mesh: ${withoutField.join(", ")}. `);
};

// A slider that divides the view between two surfaces, which are chosen on both sides of it.
const addDivider = (view, bar, caption) => {
  view.frame.append(element("i", {className: "edge"}));
  const choice = (side, label) => {
    const select = element("select", {ariaLabel: label});
    view.contents.surfaces.forEach(surface => select.append(element("option", {textContent: surface.name})));
    select.selectedIndex = view.shown[side];
    select.addEventListener("change", () => {
      view.shown[side] = select.selectedIndex;
      describe(view, caption);
      view.update();
    });
    return select;
  };
  const slider = element("input", {type: "range", min: 0, max: 1, step: 0.005, value: view.split,
    ariaLabel: "Share of the left method"});
  slider.addEventListener("input", () => { view.split = Number(slider.value); view.request(); });
  bar.prepend(element("div", {className: "divider"}, choice(0, "Method on the left"), slider, choice(1, "Method on the right")));
};

// Sets of cameras, each with a check box, and the name of the camera under the pointer.
const addCameraLegend = (view, bar) => {
  view.contents.cameras.forEach((set, index) => {
    const box = element("input", {type: "checkbox", checked: true});
    box.style.accentColor = set.color;
    box.addEventListener("change", () => { view.sets[index].visible = box.checked; view.render(); });
    const label = element("label", {className: "set"}, box, set.label);
    label.style.setProperty("--color", set.color);
    bar.append(label);
  });
  const name = element("output", {className: "name"}), place = new libraries.Vector3();
  bar.append(name);
  const centers = view.contents.cameras.map(set => numbers(Float32Array, set.centers));
  view.canvas.addEventListener("pointermove", event => {
    const {clientWidth: width, clientHeight: height} = view.frame;
    let nearest = 16, found = "";
    centers.forEach((center, index) => {
      if (!view.sets[index].visible) return;
      for (let i = 0; i < center.length; i += 3) {
        place.set(center[i], center[i + 1], center[i + 2]).project(view.camera);
        const distance = Math.hypot(
          (place.x + 1) / 2 * width - event.offsetX, (1 - place.y) / 2 * height - event.offsetY);
        if (distance < nearest) [nearest, found] = [distance, view.contents.cameras[index].names[i / 3]];
      }
    });
    name.textContent = found;
  });
};
