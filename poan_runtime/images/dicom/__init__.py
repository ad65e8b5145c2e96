"""DICOM: a folder sorted into stacks, a stack read slice by slice, a derived series written."""
