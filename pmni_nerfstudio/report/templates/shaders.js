// GLSL of the 3D views. Positions are those of the display frame; light comes from the viewer's upper left.
const shading = `
uniform int coloring; uniform bool lit; uniform vec3 clay; uniform sampler2D ramp;
vec3 shaded(vec3 normal, vec3 fromViewer, vec2 error, vec3 seen) {
  vec3 n = normalize(mat3(viewMatrix) * normal), viewer = -normalize(mat3(viewMatrix) * fromViewer);
  vec3 light = normalize(vec3(-0.45, 0.6, 0.65));
  float diffuse = max(dot(n, light), 0.0);
  if (coloring == 1) return 0.5 + 0.5 * normalize(normal);
  if (coloring == 2) {
    // Errors are pairs (value, known), which may be interpolated between known and unknown vertices.
    vec3 color = texture(ramp, vec2(error.x / max(error.y, 0.004), 0.5)).rgb;
    return mix(vec3(0.55, 0.6, 0.65), color, error.y) * (0.8 + 0.25 * diffuse);
  }
  if (coloring == 3) return lit ? seen * (0.4 + 0.65 * diffuse) : seen;  // photographs hold their own light
  return clay * (0.32 + 0.7 * diffuse) + 0.1 * pow(max(dot(n, normalize(light + viewer)), 0.0), 30.0);
}`;

const surfaceShader = {
  vertex: `
in vec2 error; in vec4 tint;
uniform float reach;
out vec3 worldNormal, fromViewer, vertexColor; out vec2 vertexError;
void main() {
  vec3 place = (2.0 * position - 1.0) * reach;
  worldNormal = normal; vertexError = error; vertexColor = tint.rgb; fromViewer = place - cameraPosition;
  gl_Position = projectionMatrix * viewMatrix * vec4(place, 1.0);
}`,
  fragment: `${shading}
in vec3 worldNormal, fromViewer, vertexColor; in vec2 vertexError;
out vec4 color;
void main() {
  // Only the inside of an open surface is flipped: normals of a simplified mesh may point away a little at its outline.
  vec3 normal = dot(worldNormal, normalize(fromViewer)) > 0.35 ? -worldNormal : worldNormal;
  color = vec4(shaded(normal, fromViewer, vertexError, vertexColor), 1.0);
}`,
};

// The field is marched in its own grid's coordinates, where distances are in voxels: the box's back faces are drawn, and
// each of their pixels is a ray from the eye.
const fieldShader = {
  vertex: `
uniform vec3 size;
out vec3 voxel;
void main() {
  voxel = (position + 0.5) * (size - 1.0);
  gl_Position = projectionMatrix * viewMatrix * modelMatrix * vec4(voxel, 1.0);
}`,
  fragment: `precision highp sampler3D;
${shading}
uniform mat4 modelMatrix;
uniform sampler3D field; uniform vec3 size, eye; uniform float band;
in vec3 voxel;
out vec4 color;
float distanceAt(vec3 at) { return (2.0 * texture(field, (at + 0.5) / size).r - 1.0) * band; }
void main() {
  vec3 ray = normalize(voxel - eye), toLow = -eye / ray, toHigh = (size - 1.0 - eye) / ray;
  vec3 enter = min(toLow, toHigh), leave = max(toLow, toHigh);
  float near = max(max(max(enter.x, enter.y), enter.z), 0.0), far = min(min(leave.x, leave.y), leave.z);
  float before = near, t = near, value = 1.0;
  for (int i = 0; i < 500 && t <= far; i++) {
    value = distanceAt(eye + t * ray);
    if (value < 0.0) break;
    before = t;
    t += max(0.9 * value, 0.3);
  }
  if (value >= 0.0) discard;
  for (int i = 0; i < 6; i++) {
    float middle = 0.5 * (before + t);
    if (distanceAt(eye + middle * ray) < 0.0) t = middle; else before = middle;
  }
  vec3 at = eye + t * ray;
  vec2 step = vec2(1.0, 0.0);
  vec3 gradient = vec3(
    distanceAt(at + step.xyy) - distanceAt(at - step.xyy),
    distanceAt(at + step.yxy) - distanceAt(at - step.yxy),
    distanceAt(at + step.yyx) - distanceAt(at - step.yyx));
  color = vec4(shaded(normalize(mat3(modelMatrix) * gradient), mat3(modelMatrix) * ray, vec2(0.0), clay), 1.0);
}`,
};
