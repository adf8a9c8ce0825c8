"""What all data of one modality shares: from raw files to prepared arrays, and the input spec."""
