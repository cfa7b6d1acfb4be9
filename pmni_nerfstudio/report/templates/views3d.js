// 3D views of surfaces, fields and cameras. A view is drawn when something changes, not all the time.
const FIELD_OF_VIEW_DEG = 30;
const SHADED = 0, NORMALS = 1, ERRORS = 2, COLORS = 3;

const bytes = text => {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let i = 0; i < found.length; i++) found[i] = letters.charCodeAt(i);
  return found;
};
const numbers = (type, text) => new type(bytes(text).buffer);
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

class View3d {
  constructor(host, contents, canvas, context) {
    this.host = host;
    this.contents = contents;
    this.coloring = SHADED;
    this.error = 0;
    this.showsField = false;
    this.split = 0.5;
    this.shown = [0, Math.min(1, contents.surfaces.length - 1)];
    this.canvas = canvas;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", contents.alt);
    this.frame = element("div", {className: "frame"}, this.canvas);
    host.append(this.frame);
    this.renderer = new libraries.WebGLRenderer({canvas, context, alpha: true});
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.scene = new libraries.Scene();
    this.addCamera();
    this.uniforms = this.sharedUniforms();
    this.surfaces = contents.surfaces.map(surface => this.addSurface(surface));
    this.fields = contents.surfaces.map(() => null);
    this.sets = contents.cameras.map(set => this.addLines(set.lines, set.color));
    if (contents.links) this.addLines(contents.links, "#999");
    addControls(this);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.request());
    new ResizeObserver(() => { this.resize(); this.render(); }).observe(this.frame);
    this.resize();
    this.render();
  }

  addCamera() {
    const {eye, reach} = this.contents;
    const distance = 1.08 * reach / Math.sin(FIELD_OF_VIEW_DEG / 2 * Math.PI / 180);
    this.camera = new libraries.PerspectiveCamera(FIELD_OF_VIEW_DEG, 1, 0.01 * distance, 10 * distance);
    this.camera.up.set(0, 0, 1);
    this.camera.position.set(...eye).setLength(distance);
    const controls = new libraries.OrbitControls(this.camera, this.canvas);
    controls.minDistance = 0.1 * distance;
    controls.maxDistance = 4 * distance;
    controls.addEventListener("change", () => this.request());
    controls.update();
    const turns = {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
    this.canvas.addEventListener("keydown", event => {
      if (!(event.key in turns)) return;
      event.preventDefault();
      const [around, up] = turns[event.key];
      controls.rotateLeft(0.1 * around);
      controls.rotateUp(0.1 * up);
      controls.update();
    });
  }

  sharedUniforms() {
    const ramp = new libraries.DataTexture(bytes(this.contents.ramp), 256, 1);
    ramp.magFilter = ramp.minFilter = libraries.LinearFilter;
    ramp.needsUpdate = true;
    return {coloring: {value: SHADED}, lit: {value: false}, clay: {value: new libraries.Color().setRGB(0.863, 0.804, 0.722)}, ramp: {value: ramp}};
  }

  material(shader, uniforms, side) {
    return new libraries.ShaderMaterial({
      glslVersion: libraries.GLSL3, vertexShader: shader.vertex, fragmentShader: shader.fragment, side,
      uniforms: {...this.uniforms, ...uniforms},
    });
  }

  addSurface(surface) {
    const geometry = new libraries.BufferGeometry();
    const attribute = (type, text, size) => new libraries.BufferAttribute(numbers(type, text), size, true);
    geometry.setAttribute("position", attribute(Uint16Array, surface.positions, 4));
    geometry.setAttribute("normal", attribute(Int8Array, surface.normals, 4));
    const faces = numbers(surface.wide ? Uint32Array : Uint16Array, surface.faces);
    geometry.setIndex(new libraries.BufferAttribute(faces, 1));
    const mesh = new libraries.Mesh(
      geometry, this.material(surfaceShader, {reach: {value: surface.reach}}, libraries.DoubleSide));
    mesh.frustumCulled = false;
    if (surface.colors) geometry.setAttribute("tint", attribute(Uint8Array, surface.colors.values, 4));
    mesh.errors = surface.errors.map(errors => attribute(Uint8Array, errors.values, 2));
    this.scene.add(mesh);
    return mesh;
  }

  addLines(text, color) {
    const geometry = new libraries.BufferGeometry();
    geometry.setAttribute("position", new libraries.BufferAttribute(numbers(Float32Array, text), 3));
    const lines = new libraries.LineSegments(geometry, new libraries.LineBasicMaterial({color}));
    this.scene.add(lines);
    return lines;
  }

  async loadField(index) {
    const {size, band, matrix, values} = this.contents.surfaces[index].field;
    const stream = new Blob([bytes(values)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    const texture = new libraries.Data3DTexture(voxels, ...size);
    Object.assign(texture, {format: libraries.RedFormat, magFilter: libraries.LinearFilter,
      minFilter: libraries.LinearFilter, unpackAlignment: 1, needsUpdate: true});
    const uniforms = {field: {value: texture}, size: {value: new libraries.Vector3(...size)},
      eye: {value: new libraries.Vector3()}, band: {value: band}};
    const box = new libraries.Mesh(
      new libraries.BoxGeometry(), this.material(fieldShader, uniforms, libraries.BackSide));
    box.matrixAutoUpdate = box.frustumCulled = false;
    box.matrix.fromArray(matrix);
    box.fromDisplay = box.matrix.clone().invert();
    this.scene.add(box);
    return box;
  }

  async update() {
    if (this.showsField) {
      for (const index of this.shown) {
        if (this.contents.surfaces[index].field) this.fields[index] ??= await this.loadField(index);
      }
    }
    this.render();
  }

  resize() {
    const {clientWidth: width, clientHeight: height} = this.frame;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    // The object fits into the shorter side.
    const slope = Math.tan(FIELD_OF_VIEW_DEG / 2 * Math.PI / 180) / Math.min(1, this.camera.aspect);
    this.camera.fov = 2 * Math.atan(slope) * 180 / Math.PI;
    this.camera.updateProjectionMatrix();
  }

  request() {
    this.requested ??= requestAnimationFrame(() => { this.requested = undefined; this.render(); });
  }

  render() {
    const {clientWidth: width, clientHeight: height} = this.frame;
    if (!width || !height) return;
    this.uniforms.coloring.value = this.coloring;
    this.renderer.setScissorTest(false);
    // Opaque: browsers print what is transparent in a canvas as black.
    this.renderer.setClearColor(getComputedStyle(this.frame).backgroundColor, 1);
    this.renderer.clear();
    this.renderer.autoClear = false;
    this.renderer.setScissorTest(true);
    const [left, right] = this.shown, edge = left == right ? width : Math.round(this.split * width);
    this.renderPart(left, 0, edge, height);
    this.renderPart(right, edge, width - edge, height);
    this.host.dataset.drawn = this.showsField && this.fields[left] ? "field" : "mesh";
    this.frame.style.setProperty("--edge", left == right ? "-9px" : `${edge}px`);
  }

  renderPart(index, start, width, height) {
    if (width <= 0) return;
    const asField = this.showsField && this.fields[index];
    this.surfaces.forEach((mesh, i) => { mesh.visible = i == index && !asField; });
    this.fields.forEach((box, i) => { if (box) box.visible = i == index && asField; });
    if (asField) {
      const box = this.fields[index];
      box.material.uniforms.eye.value.copy(this.camera.position).applyMatrix4(box.fromDisplay);
      // Errors and colors are known at the mesh's vertices only.
      this.uniforms.coloring.value = this.coloring == NORMALS ? NORMALS : SHADED;
    } else {
      const colors = this.contents.surfaces[index].colors;
      this.uniforms.coloring.value = this.coloring == COLORS && !colors ? SHADED : this.coloring;
      this.uniforms.lit.value = Boolean(colors?.lit);
      const errors = this.surfaces[index].errors[this.error];
      if (errors) this.surfaces[index].geometry.setAttribute("error", errors);
    }
    this.renderer.setScissor(start, 0, width, height);
    this.renderer.render(this.scene, this.camera);
  }
}
