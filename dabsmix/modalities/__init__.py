"""What all data sets of one modality share: how raw files become prepared arrays, and the spec of the encoder's input.

Each of image, spectrogram, sensor, tabular, text and sequence has one module, which also reads a user's own files
(`load_own`) and further files for a trained run (`load_further`). `showing` draws examples, or writes them in words.
This room may import `data` and the ground floor.
"""
