"""What `vlbench export` writes as load.py, about 55 lines each, and as network.py where no library has the class.

Every load.py stands alone in an exported folder, and so they repeat one another. All do the same: build the library's
class from config.json, give each parameter the tensor of its name (which is how layers become narrow), tell each
attention what stock.json says, and multiply its queries so that the softmax keeps its scale.
"""
