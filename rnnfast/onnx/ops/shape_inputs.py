"""Which inputs decide by their values, not only by their shapes, what shapes an operator's outputs have."""

ALL = None

# operator -> positions of its inputs; an operator that is not here has outputs whose shapes follow from shapes.
# Older forms of an operator, which have an attribute in an input's place, have fewer inputs in the same order.
# If, Loop and Scan are not here: what their graphs compute and capture decides too.
SHAPE_INPUTS = {
    "Compress": (1,),
    "ConcatFromSequence": ALL,
    "ConstantOfShape": (0,),
    "Expand": (1,),
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
}
