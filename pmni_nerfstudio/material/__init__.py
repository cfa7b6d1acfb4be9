# SPDX-License-Identifier: Apache-2.0
"""Reflectance of a surface from images under known lights: roughness, specular and albedo, and relit pictures.

The steps, top down:
    appearance: material and base color of a result, tested on a view that is held out.
    find_capture: the images from which `pmni photometric` computed a scene's normal maps.
    estimate: the material, by alternating fits of it and of the interreflection.
    fit: roughness and specular layer, with an albedo for each surface element.
    albedo_maps: base color of every pixel, given the material.
    relighting: rendering of the held-out view, compared with its images.
    normal_refinement: normals of the pixels, given a surface that shadows and illuminates itself.

What they share:
    lit_views: views with their lights, and the incident light at surface points.
    samples: image values of surface elements in all views under all lights.
    microfacet: the reflection model of glTF.
    interreflection: diffuse light between surface elements.
    diffuse_model: albedo of the elements and specular layer, on the scale that interreflection needs.
    shading: radiance of surface points under the lights of a view.
"""
