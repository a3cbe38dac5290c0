"""The painter of the demo dataset. Order of imports: scene, scenery and objects, camera."""
