"""The models that ship as config files, and the sizes that follow from an architecture."""
