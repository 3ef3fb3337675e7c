"""The inputs whose values, not only their shapes, decide the shapes of an operator's outputs."""

ALL = None

# operator -> the indices of such inputs. The output shapes of all other operators follow from the input shapes.
# Older versions, with an attribute in place of an input, have fewer inputs in the same order.
# If, Loop and Scan are left out: the values that their graphs compute and capture decide too.
SHAPE_INPUTS = {
    "AffineGrid": (1,),
    "BlackmanWindow": ALL,
    "Compress": (1,),
    "ConcatFromSequence": ALL,
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": ALL,
    "HannWindow": ALL,
    "MelWeightMatrix": (0, 1),
    "NonZero": ALL,
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": ALL,
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": ALL,
    "SequenceConstruct": ALL,
    "SequenceErase": ALL,
    "SequenceInsert": ALL,
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": ALL,
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unique": ALL,
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
