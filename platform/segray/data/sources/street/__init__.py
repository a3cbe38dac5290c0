"""Renderer of the demo dataset. Import order: scene, scenery and objects, camera."""
