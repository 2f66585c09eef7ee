from mlxd.core.request import Sampling


def test_the_client_decides_before_the_model_and_the_model_before_the_dialect():
    client = Sampling(temperature=0.0)
    model = Sampling(temperature=0.7, top_k=20)
    dialect = Sampling(temperature=0.8, top_k=40, top_p=0.9)
    assert client.over(model).over(dialect) == Sampling(temperature=0.0, top_k=20, top_p=0.9)
