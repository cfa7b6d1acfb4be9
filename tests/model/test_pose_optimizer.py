# SPDX-License-Identifier: Apache-2.0
"""Pose corrections: exponential map, gauge, and equal composition in training, viewer and exporters."""

from __future__ import annotations

import copy
import sys
import types

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry import se3 as lie
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer, PmniPoseOptimizerConfig

VIEWS = 6
EXPONENTIALS = [lie.se3_exp_pypose, lie.se3_exp_nerfstudio]


def opengl_poses(seed: int = 0, views: int = VIEWS, distance: float = 15.0) -> torch.Tensor:
    """Camera-to-world poses (N, 3, 4) around the origin, which look at it within about a degree, with random roll."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(views, random_state=rng).as_matrix()
    center = distance * turn[:, :, 2] + 0.3 * rng.standard_normal((views, 3))  # OpenGL looks along -z
    return torch.from_numpy(np.concatenate([turn, center[..., None]], axis=-1)).float()


def make_optimizer(mode: str = "SE3", moved: bool = True, **config) -> PmniPoseOptimizer:
    """A new optimizer; if moved, with initial poses that differ from the base and corrections of a few degrees."""
    base = opengl_poses()
    optimizer = PmniPoseOptimizerConfig(mode=mode, **config).setup(num_cameras=VIEWS, device="cpu", base_c2w=base)
    if moved and mode != "off":
        generator = torch.Generator().manual_seed(1)
        nudge = torch.randn(VIEWS, 6, generator=generator, dtype=torch.float64) * 0.05
        start = homogeneous(lie.se3_exp_nerfstudio(nudge)) @ homogeneous(base.double())
        optimizer.set_start(start[:, :3].float())
        with torch.no_grad():
            optimizer.rotation.copy_(torch.randn(VIEWS, 3, generator=generator) * 0.08)
            optimizer.translation.copy_(torch.randn(VIEWS, 3, generator=generator) * 0.1)
    return optimizer


def make_cameras(c2w: torch.Tensor, numbered: bool = True) -> Cameras:
    """Cameras like those of the data parser."""
    return Cameras(
        camera_to_worlds=c2w,
        fx=250.0,
        fy=260.0,
        cx=15.5,
        cy=13.0,
        width=32,
        height=24,
        metadata={"cam_idx": torch.arange(len(c2w))[:, None]} if numbered else {},
    )


def homogeneous(c2w: torch.Tensor) -> torch.Tensor:
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=c2w.dtype).expand(*c2w.shape[:-2], 1, 4)
    return torch.cat([c2w, last], dim=-2)


def twist_matrix(twist: torch.Tensor) -> torch.Tensor:
    """Twist as a 4x4 matrix, whose matrix exponential is the motion."""
    matrix = torch.zeros(*twist.shape[:-1], 4, 4, dtype=twist.dtype)
    x, y, z = twist[..., 3:].unbind(-1)
    matrix[..., 0, 1], matrix[..., 0, 2], matrix[..., 1, 2] = -z, y, -x
    matrix[..., 1, 0], matrix[..., 2, 0], matrix[..., 2, 1] = z, -y, x
    matrix[..., :3, 3] = twist[..., :3]
    return matrix


def twists_at(angle: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    axis = torch.nn.functional.normalize(torch.randn(7, 3, generator=generator, dtype=torch.float64), dim=-1)
    return torch.cat([torch.randn(7, 3, generator=generator, dtype=torch.float64), angle * axis], dim=-1)


# --- the exponential map ---


@pytest.mark.parametrize("exponential", EXPONENTIALS)
@pytest.mark.parametrize("angle", [0.0, 1e-17, 1e-15, 1e-12, 1e-8, 2e-7, 1e-4, 5e-3, 0.1, 1.0, 3.0, np.pi, 5.0])
def test_exponential_is_the_matrix_exponential(exponential, angle):
    twist = twists_at(angle)
    expected = torch.linalg.matrix_exp(twist_matrix(twist))[:, :3]
    torch.testing.assert_close(exponential(twist), expected, atol=2e-8, rtol=0)


@pytest.mark.parametrize("exponential", EXPONENTIALS)
@pytest.mark.parametrize("angle", [0.0, 3e-16, 1e-14, 1e-11, 1e-8, 2e-7, 1e-4, 5e-3, 0.1, 1.0, 3.0, 5.0])
def test_exponential_gradient_is_the_finite_difference(exponential, angle):
    twist = twists_at(angle)
    step = 1e-4
    moved = twist[:, None, None] + step * torch.stack([torch.eye(6), -torch.eye(6)]).double()
    values = torch.linalg.matrix_exp(twist_matrix(moved))[..., :3, :]
    expected = (values[:, 0] - values[:, 1]) / (2 * step)  # (7, 6, 3, 4)
    jacobian = torch.autograd.functional.jacobian(lambda t: exponential(t).sum(0), twist)  # (3, 4, 7, 6)
    # nerfstudio's short series below 1e-2 rad; finite differences leave 1e-8.
    tolerance = 1e-4 if exponential is lie.se3_exp_nerfstudio else 1e-7
    torch.testing.assert_close(jacobian.permute(2, 3, 0, 1), expected, atol=tolerance, rtol=0)


def test_falls_back_to_nerfstudio_without_pypose(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pypose", None)  # makes the import fail
    assert lie.choose_exponential() == ("nerfstudio", lie.se3_exp_nerfstudio)
    without = make_optimizer()
    assert "nerfstudio" in capsys.readouterr().out
    monkeypatch.undo()
    assert lie.choose_exponential() == ("pypose", lie.se3_exp_pypose)
    torch.testing.assert_close(without.c2w(), make_optimizer().c2w(), atol=2e-6, rtol=0)


# --- parametrisation and gauge ---


def test_correction_rotates_and_shifts_the_object_in_camera_axes(monkeypatch):
    monkeypatch.setattr("pmni_nerfstudio.model.pose_optimizer.fix_gauge", lambda t, r, _: (t, r))
    optimizer = make_optimizer(moved=False)
    rotation, translation = np.array([0.1, -0.2, 0.05]), np.array([0.0, 0.0, 0.3])
    with torch.no_grad():
        optimizer.rotation[2] = torch.from_numpy(rotation)
        optimizer.translation[4] = torch.from_numpy(translation)
    base, now = optimizer.base_c2w.double().numpy(), optimizer.c2w().detach().double().numpy()
    axes, center = base[2, :, :3], base[2, :, 3]
    turn = axes @ Rotation.from_rotvec(rotation).as_matrix() @ axes.T
    np.testing.assert_allclose(now[2], np.column_stack([turn @ axes, turn @ center]), atol=3e-6)
    # The camera still sees the object's center at the same point.
    np.testing.assert_allclose(now[2, :, :3].T @ now[2, :, 3], axes.T @ center, atol=5e-6)
    np.testing.assert_allclose(now[4, :, :3], base[4, :, :3], atol=1e-6)
    np.testing.assert_allclose(now[4, :, 3], base[4, :, 3] + 0.3 * base[4, :, 2], atol=2e-6)
    np.testing.assert_allclose(now[[0, 1, 3, 5]], base[[0, 1, 3, 5]], atol=2e-6)


def test_motion_common_to_all_views_changes_nothing():
    optimizer = make_optimizer()
    before = optimizer.c2w_opencv_double()
    axes = optimizer.start_c2w[:, :, :3]
    with torch.no_grad():
        optimizer.rotation += (axes.mT @ torch.tensor([0.3, -0.1, 0.2])).squeeze(-1)
        optimizer.translation += (axes.mT @ torch.tensor([-0.2, 0.4, 0.1])).squeeze(-1)
        optimizer.translation += 0.05 * (axes.mT @ optimizer.start_c2w[:, :, 3:]).squeeze(-1)  # scaling
    np.testing.assert_allclose(optimizer.c2w_opencv_double(), before, atol=1e-5)
    with torch.no_grad():
        optimizer.rotation[0] += 0.1
    assert np.abs(optimizer.c2w_opencv_double() - before).max() > 0.02


def test_gauge_projection_is_idempotent_and_leaves_the_mean_camera():
    generator = torch.Generator().manual_seed(0)
    translation, rotation, centers = torch.randn(3, 9, 3, generator=generator, dtype=torch.float64)
    once = lie.fix_gauge(translation, rotation, centers)
    for first, second in zip(once, lie.fix_gauge(*once, centers)):
        torch.testing.assert_close(second, first, atol=1e-13, rtol=0)
        torch.testing.assert_close(first.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-13, rtol=0)
    assert abs((once[0] * centers).sum()) < 1e-12  # no common scaling
    # The projection is orthogonal: the removed part is perpendicular to the rest.
    assert abs(((translation - once[0]) * once[0]).sum()) < 1e-12
    assert torch.autograd.gradcheck(lie.fix_gauge, tuple(t.requires_grad_() for t in (translation, rotation, centers)))


def test_a_single_view_does_not_move():
    base = opengl_poses(views=1)
    optimizer = PmniPoseOptimizerConfig().setup(num_cameras=1, device="cpu", base_c2w=base)
    with torch.no_grad():
        optimizer.rotation += 0.3
        optimizer.translation += 0.3
    torch.testing.assert_close(optimizer.c2w(), base, atol=1e-6, rtol=0)


def test_gradients_of_poses_are_finite_differences():
    """Gradients pass through gauge and exponential map, at zero corrections and elsewhere."""
    weights = torch.randn(VIEWS, 3, 4, generator=torch.Generator().manual_seed(5)).double()
    for moved in (False, True):
        optimizer = make_optimizer(moved=moved).double()
        (optimizer.c2w() * weights).sum().backward()
        for parameter in (optimizer.rotation, optimizer.translation):
            for index in [(0, 0), (3, 1), (5, 2)]:
                step = 1e-5
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        parameter[index] += sign * step
                        values.append((optimizer.c2w() * weights).sum().item())
                        parameter[index] -= sign * step
                assert parameter.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


# --- one composition ---


def viewer_poses(optimizer: PmniPoseOptimizer, cameras: Cameras) -> np.ndarray:
    """Poses at which nerfstudio's viewer draws the frusta, computed by its own code without the drawing."""
    from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer

    keys = list(range(len(cameras)))
    handles = {key: types.SimpleNamespace(position=None, wxyz=None) for key in keys}
    model = types.SimpleNamespace(camera_optimizer=optimizer)
    viewer = types.SimpleNamespace(
        pipeline=types.SimpleNamespace(datamanager=types.SimpleNamespace(), model=model),
        camera_handles=handles,
        original_c2w={key: cameras.camera_to_worlds[key].numpy() for key in keys},
    )
    Viewer.update_camera_poses(viewer)
    poses = np.zeros((len(keys), 3, 4))
    for key, handle in handles.items():
        w, x, y, z = handle.wxyz
        poses[key, :, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
        poses[key, :, 3] = handle.position / VISER_NERFSTUDIO_SCALE_RATIO
    return poses * np.array([1.0, -1.0, -1.0, 1.0])  # the viewer turns frusta about x, to OpenCV axes


@pytest.mark.parametrize("mode", ["SE3", "off"])
def test_viewer_export_camera_and_rays_agree(mode):
    from nerfstudio.exporter.exporter_utils import collect_camera_poses_for_dataset

    optimizer = make_optimizer(mode)
    cameras = make_cameras(optimizer.base_c2w)
    truth = optimizer.c2w().detach()
    close = {"atol": 5e-6, "rtol": 0}
    moved = (truth - optimizer.base_c2w).abs().amax(dim=(1, 2))
    assert (moved > 0.05).all() if mode == "SE3" else (moved == 0).all()

    np.testing.assert_allclose(viewer_poses(optimizer, cameras), truth, **close)
    np.testing.assert_allclose(optimizer.c2w_opencv_double()[:, :3] * [1, -1, -1, 1], truth, **close)
    identity = optimizer.c2w_opencv_double() @ homogeneous(optimizer.w2c_opencv().detach().double()).numpy()
    np.testing.assert_allclose(identity, np.tile(np.eye(4), (VIEWS, 1, 1)), **close)

    dataset = types.SimpleNamespace(cameras=cameras, image_filenames=[f"{i}.png" for i in range(VIEWS)])
    frames = collect_camera_poses_for_dataset(dataset, optimizer)
    np.testing.assert_allclose(np.array([frame["transform"] for frame in frames]), truth, **close)
    np.testing.assert_allclose(optimizer.apply_to_camera(cameras).detach(), truth, **close)

    for view in range(VIEWS):
        camera = cameras[view : view + 1]
        bundle = camera.generate_rays(0)
        bundle.set_camera_indices(view)
        optimizer.apply_to_raybundle(bundle)
        corrected = copy.copy(camera)
        corrected.camera_to_worlds = optimizer.apply_to_camera(camera).detach()
        expected = corrected.generate_rays(0)
        np.testing.assert_allclose(bundle.origins.detach(), expected.origins, **close)
        np.testing.assert_allclose(bundle.directions.detach(), expected.directions, **close)


@pytest.mark.parametrize("cam_idx", [3, torch.tensor([3]), torch.tensor([[3]])])
def test_apply_to_camera_accepts_any_index_type(cam_idx):
    optimizer = make_optimizer()
    truth = optimizer.c2w()[3]
    camera = make_cameras(optimizer.base_c2w, numbered=False)[3:4]
    camera.metadata = {"cam_idx": cam_idx}
    torch.testing.assert_close(optimizer.apply_to_camera(camera), truth[None], atol=5e-6, rtol=0)
    alone = make_cameras(optimizer.base_c2w)[3]  # no batch dimension
    torch.testing.assert_close(optimizer.apply_to_camera(alone), truth, atol=5e-6, rtol=0)


@pytest.mark.parametrize("metadata", [None, {}])
def test_cameras_that_are_not_training_views_do_not_move(metadata):
    optimizer = make_optimizer()
    camera = make_cameras(optimizer.base_c2w)[2:3]
    camera.metadata = metadata
    assert torch.equal(optimizer.apply_to_camera(camera), optimizer.base_c2w[2:3])
    bundle = camera.generate_rays(0)
    bundle.camera_indices = None
    origins, directions = bundle.origins, bundle.directions
    optimizer.apply_to_raybundle(bundle)
    assert bundle.origins is origins
    assert bundle.directions is directions


@pytest.mark.parametrize("shape", [(1,), (), (7,), (4, 5), (0,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_rays_of_any_shape_are_corrected_one_by_one(shape, dtype):
    optimizer = make_optimizer()
    generator = torch.Generator().manual_seed(2)
    origins, directions = torch.randn(2, *shape, 3, generator=generator)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    view = torch.randint(0, VIEWS, (*shape, 1), generator=generator)
    bundle = RayBundle(
        origins=origins, directions=directions, pixel_area=torch.ones(*shape, 1), camera_indices=view.to(dtype)
    )
    optimizer.apply_to_raybundle(bundle)
    assert bundle.origins.shape == bundle.directions.shape == (*shape, 3)
    motions = homogeneous(optimizer.c2w().detach()).double() @ homogeneous(optimizer.base_c2w).double().inverse()
    for index in np.ndindex(*shape):
        motion = motions[view[index].item()]
        close = {"atol": 5e-6, "rtol": 0, "check_dtype": False}
        torch.testing.assert_close(
            bundle.origins[index], motion[:3, :3] @ origins[index].double() + motion[:3, 3], **close
        )
        torch.testing.assert_close(bundle.directions[index], motion[:3, :3] @ directions[index].double(), **close)


def test_ray_gradients_are_finite_differences():
    """Gradient of the poses through the motion of each ray."""
    optimizer = make_optimizer().double()
    generator = torch.Generator().manual_seed(4)
    origins, directions, weights = torch.randn(3, 50, 3, generator=generator, dtype=torch.float64)
    view = torch.randint(0, VIEWS, (50, 1), generator=generator)

    def objective() -> torch.Tensor:
        bundle = RayBundle(origins=origins, directions=directions, pixel_area=origins[:, :1], camera_indices=view)
        optimizer.apply_to_raybundle(bundle)
        return (weights * (bundle.origins + bundle.directions)).sum()

    objective().backward()
    step = 1e-5
    for parameter in (optimizer.rotation, optimizer.translation):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[2, 1] += sign * step
                values.append(objective().item())
                parameter[2, 1] -= sign * step
        assert parameter.grad[2, 1].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


def test_rays_keep_their_precision_under_mixed_precision():
    optimizer = make_optimizer()

    def corrected() -> RayBundle:
        bundle = make_cameras(optimizer.base_c2w)[0:1].generate_rays(0)
        optimizer.apply_to_raybundle(bundle)
        return bundle

    plain = corrected()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = corrected()
    assert torch.equal(plain.origins, mixed.origins)
    assert torch.equal(plain.directions, mixed.directions)


def test_mode_off_changes_no_bit():
    optimizer = make_optimizer("off")
    cameras = make_cameras(optimizer.base_c2w)
    bundle = cameras.generate_rays(torch.arange(VIEWS)[:, None])
    origins, directions = bundle.origins.clone(), bundle.directions.clone()
    optimizer.apply_to_raybundle(bundle)
    assert torch.equal(bundle.origins, origins)
    assert torch.equal(bundle.directions, directions)
    assert torch.equal(optimizer(torch.arange(VIEWS)), torch.eye(4)[:3].expand(VIEWS, 3, 4))
    assert torch.equal(optimizer.c2w(), optimizer.base_c2w)
    assert torch.equal(optimizer.apply_to_camera(cameras), cameras.camera_to_worlds)
    with pytest.raises(ValueError, match="off"):
        optimizer.set_start(optimizer.base_c2w)


# --- state, device, groups, metrics ---


def test_set_start_replaces_poses_and_resets_corrections():
    optimizer = make_optimizer()
    poses = opengl_poses(seed=9)
    optimizer.set_start(poses)
    torch.testing.assert_close(optimizer.c2w(), poses, atol=2e-6, rtol=0)
    assert not optimizer.rotation.any()
    assert not optimizer.translation.any()
    assert torch.equal(optimizer.base_c2w, opengl_poses())


@pytest.mark.parametrize(
    ("poses", "what"),
    [
        (opengl_poses(views=VIEWS - 1), "shape"),
        (homogeneous(opengl_poses()), "shape"),
        (opengl_poses() * torch.tensor([1.0, 1.0, -1.0, 1.0]), "view 0"),  # a reflection
        (opengl_poses() * torch.tensor([1.0, 1.0, 1.0, torch.nan]), "view 0"),
        (torch.cat([opengl_poses()[:-1], 1.1 * opengl_poses()[-1:]]), f"view {VIEWS - 1}"),
    ],
)
def test_invalid_poses_are_rejected(poses, what):
    with pytest.raises(ValueError, match=what):
        make_optimizer().set_start(poses)


def test_checkpoint_restores_poses_with_other_dataset_poses():
    saved = make_optimizer()
    saved.set_depth_scales(torch.linspace(0.5, 2, VIEWS))
    rough = opengl_poses(seed=3)  # as from another noise seed
    restored = PmniPoseOptimizerConfig().setup(num_cameras=VIEWS, device="cpu", base_c2w=rough)
    restored.load_state_dict(saved.state_dict())
    np.testing.assert_array_equal(restored.c2w_opencv_double(), saved.c2w_opencv_double())
    torch.testing.assert_close(restored.depth_scales(), torch.linspace(0.5, 2, VIEWS))
    # Rays move from the base poses of the dataset in use.
    camera = make_cameras(rough)
    torch.testing.assert_close(restored.apply_to_camera(camera), saved.c2w(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("mode", ["SE3", "off"])
def test_device_follows_the_module(mode):
    optimizer = make_optimizer(mode)
    assert optimizer.device == torch.device("cpu")
    assert torch.nn.Sequential(optimizer).to("meta")[0].device == torch.device("meta")


def test_param_groups_separate_rates_and_are_absent_with_mode_off():
    optimizer = make_optimizer()
    groups = optimizer.param_groups()
    assert set(groups) == {"pose_rotation", "pose_translation", "pose_depth_scale"}
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in optimizer.parameters()}
    off = make_optimizer("off")
    collected: dict = {}
    off.get_param_groups(collected)
    assert list(collected) == ["pose_depth_scale"]
    assert [id(p) for p in collected["pose_depth_scale"]] == [id(p) for p in off.parameters()]


def test_metrics_and_penalty_measure_the_correction():
    optimizer = make_optimizer(moved=False, trans_l2_penalty=2.0, rot_l2_penalty=3.0)
    with torch.no_grad():
        optimizer.rotation[1, 0] = np.deg2rad(6.0)
        optimizer.translation[4, 2] = 0.12
    metrics: dict = {}
    optimizer.get_metrics_dict(metrics)
    # The gauge distributes the rotation of one view: 5/6 of it remains there, and the others rotate back by 1/6.
    assert metrics["pose_rotation_max_deg"].item() == pytest.approx(5.0, abs=1e-4)
    assert metrics["pose_rotation_mean_deg"].item() == pytest.approx((5.0 + 5 * 1.0) / 6, abs=1e-4)
    translation, rotation = optimizer.twists()
    assert metrics["pose_translation_mean"].item() == pytest.approx(translation.norm(dim=-1).mean().item(), abs=1e-6)
    losses: dict = {}
    optimizer.get_loss_dict(losses)
    expected = 2 * translation.square().sum() / VIEWS + 3 * rotation.square().sum() / VIEWS
    assert losses["pose_regularizer"].item() == pytest.approx(expected.item(), rel=1e-5)
    for quiet in (make_optimizer(), make_optimizer("off", trans_l2_penalty=1.0)):
        nothing: dict = {}
        quiet.get_loss_dict(nothing)
        assert nothing == {}
    nothing = {}
    make_optimizer("off").get_metrics_dict(nothing)
    assert nothing == {}


def test_frozen_poses_are_those_of_the_moment_and_can_still_be_replaced():
    optimizer = make_optimizer()
    with torch.no_grad():
        optimizer.rotation.normal_(std=0.1)
        optimizer.translation.normal_(std=0.1)
    before, start = optimizer.c2w().detach().clone(), optimizer.start_c2w.clone()
    optimizer.freeze()
    torch.testing.assert_close(optimizer.c2w(), before)
    assert not optimizer.c2w().requires_grad and not torch.allclose(before, start)
    optimizer.set_start(start)
    torch.testing.assert_close(optimizer.c2w(), start)
