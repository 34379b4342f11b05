"""The command line: `passionsr-lab COMMAND`, one file per command, loaded when it is called."""

COMMANDS = {
    "upscale": "Super-resolve a picture or a folder of pictures, exactly x4.",
    "calibrate": "Quantize a model and calibrate it; a stopped run goes on where it was.",
    "deploy": "Make integers of a calibrated model: a folder that an engine runs.",
    "convert": "PassionSR's released calibration files to this library's, and back.",
    "mixed": "A recipe of several widths: most bits where they bring most, under a budget.",
    "compare": "The ablation: methods x recipes on pictures that were not calibrated on.",
    "tune": "Learning rates for compare, chosen on pictures of their own.",
    "train": "Train the embedded model on a folder of photographs; a stopped run goes on.",
    "evaluate": "PSNR-Y of a full-precision model against bicubic on photographs or lr/ + hr/.",
    "cost": "Parameters, MACs and bit-weighted size and operations, from the architecture alone.",
    "measure": "Score the pictures of a folder against originals of the same names.",
    "pairs": "Make a calibration set of pairs out of photographs; a stopped run goes on.",
    "table2": "Table 2: data sets x bits x methods, as CSV and LaTeX beside the paper's numbers.",
    "report": "All about quantized models on one page to mail: scores, pictures, layers, cost.",
    "prefetch": "Download the weights that a protocol's metrics need, those that can be had.",
    "doctor": "What this machine has and lacks, and how to get it; 0 if the work can run, else 1.",
    "bench": "Time and memory: of SD2.1 with random weights, of calibration steps, of integers over float.",
}
