"""The commands from Python; `import fusionrun` has all of it."""
