"""The node fed with broken DICOM and beset by bad guests."""
