"""Numbers of several processes as those of one server."""

from rnnfast.server.sums import summed


def test_numbers_are_summed_within_objects_and_lists():
    one = {
        "model_stats": [
            {"name": "a", "version": "1", "last_inference": 7, "n": {"count": 1, "ns": 0.5}, "counts": [1, 2],
             "batch_stats": [{"batch_size": 1, "count": 3}, {"batch_size": 4, "count": 1}]},
            {"name": "a", "version": "2", "last_inference": 0, "n": {"count": 1, "ns": 0.5}},
        ]
    }  # fmt: skip
    two = {
        "model_stats": [
            {"name": "a", "version": "2", "last_inference": 3, "n": {"count": 5, "ns": 1.0}},
            {"name": "a", "version": "1", "last_inference": 5, "n": {"count": 2, "ns": 0.25}, "counts": [10, 20],
             "batch_stats": [{"batch_size": 4, "count": 2}, {"batch_size": 2, "count": 9}]},
        ]
    }  # fmt: skip
    assert summed([one, two]) == {
        "model_stats": [
            {"name": "a", "version": "1", "last_inference": 7, "n": {"count": 3, "ns": 0.75}, "counts": [11, 22],
             "batch_stats": [{"batch_size": 1, "count": 3}, {"batch_size": 4, "count": 3},
                             {"batch_size": 2, "count": 9}]},
            {"name": "a", "version": "2", "last_inference": 3, "n": {"count": 6, "ns": 1.5}},
        ]
    }  # fmt: skip
    assert summed([one]) == one


def test_histograms_truth_values_and_texts():
    one = {"seconds": {"bounds": [0.5, 1.0], "counts": [1, 2, 0], "sum": 0.5}, "draining": False, "weights": "int8"}
    two = {"seconds": {"bounds": [0.5, 1.0], "counts": [4, 0, 3], "sum": 1.5}, "draining": True, "weights": "int8"}
    assert summed([one, two]) == {
        "seconds": {"bounds": [0.5, 1.0], "counts": [5, 2, 3], "sum": 2.0}, "draining": True, "weights": "int8"
    }  # fmt: skip


def test_names_that_only_one_has_stay():
    assert summed([{"failed": {"input": 1}}, {"failed": {"deadline": 2}}]) == {"failed": {"input": 1, "deadline": 2}}
