"""The text of a user's op with a template of its own, `mine.cpp` beside it."""

OWN = """\
import ksearch

@ksearch.op
class Mine(ksearch.TemplateOp):
    name = "mine"
    options = {"alpha": 2.0}
    templates = {"cpu": "mine.cpp"}

    def reference(self, x, *, alpha):
        return alpha * x

    def space(self, workload, target):
        return {"step": [1, 2]}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=1)

    def variables(self, config, workload, target):
        return {"extra": config["step"] + 1}
"""
