"""x."""
def print_all(results): 
    import json; print(json.dumps(results, indent=1))
def draw(*a): pass
def fill(*a): pass
