"""A DICOM application entity: what arrives is on the disk and queued before it is answered."""
