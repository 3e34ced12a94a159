"""Generation: from prompts to answers, with every module on the meshes that training left it on.

`generator` runs prefill and decode steps, whose programs `decode_programs` traces stage by stage (`stage_programs`).
`prompt` makes the arrays of a question to the model in a `model_folder`; `evaluate` scores answers.
"""
