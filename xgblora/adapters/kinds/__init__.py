"""Kinds of layers that can carry an adapter: one file a kind, registered where the room `adapters` is imported.

A kind says how its layers are recognised, where their weight is and how it is stored, whether a merge may write into
it, and what PEFT calls them. A new kind is a new file here and its registration; `register_kind` takes one from
another package too.
"""
