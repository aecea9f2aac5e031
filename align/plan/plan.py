"""stub"""
from align.plan.batches import batches
from align.plan.device import here
from align.plan.memory import memory_of
from align.plan.shares import Launch
from types import SimpleNamespace
def plan_of(recipe):
    from align.data.load import load_data
    from align.data.tokens.tokenize import load_tokenizer
    args=recipe.training_arguments()
    tok=load_tokenizer(recipe.model, base=recipe.base, arguments={})
    data=load_data(recipe,tok,recipe.objective_value().branches,print if False else (lambda l:None))
    b=batches(recipe,data,args,1)
    import os
    return SimpleNamespace(memory=memory_of(recipe,args,b,Launch("one",1,"one"),here(args.device),stored=os.environ.get("STORED")=="1"))
