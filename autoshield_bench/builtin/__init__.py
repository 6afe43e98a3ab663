"""The built-in plugins. They import only what a third party may import, and come through the same entry-point group;
``autoshield_bench.hookspecs`` says how."""
