"""An image server on the ISMRMRD stream protocol: slices in, finer slices out, at the scanner."""
