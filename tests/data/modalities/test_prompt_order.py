from hetjax.data.modalities.prompt_order import Tokens, audio_items, image_items, video_items


def text(items):
    marks = {"image": "<img>{}</img>", "audio": "<so>{}</so>"}
    return "".join(marks[item.kind].format(item.count) if isinstance(item, Tokens) else item for item in items)


def test_image_and_audio():
    assert text(image_items(5)) == "<img>5</img>" and text(audio_items(7)) == "<so>7</so>"


def test_a_video_has_the_times_of_its_frames():
    assert text(video_items([0.0, 0.5, 1.0], 2, 9)) == (
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: <img>9</img>\n"
        "Frame 3 sampled at 1.00 seconds: <img>9</img>"
    )


def test_where_the_audio_of_a_video_stands():
    times, clips = [0.0, 1.0, 2.0, 3.0, 4.0], [(2.0, 20), (4.0, 30), (6.0, 10)]

    def short(**options):
        made = text(video_items(times, 1, 1, clips=clips, **options))
        return (
            made.replace("<img>1</img>", "#")
            .replace(" seconds: ", "")
            .replace("Frame ", "")
            .replace(" sampled at ", "@")
        )

    frames = "1@0.00#\n2@1.00#\n3@2.00#\n4@3.00#\n5@4.00#"
    assert short() == frames
    assert short(order="after_marker", prefix="Film:\n") == f"Film:\n<so>60</so>{frames}"
    assert short(order="after_frames") == f"{frames}<so>60</so>"
    assert short(order="interleaved") == (
        "1@0.00#\n2@1.00#\n<so>20</so>\n3@2.00#\n4@3.00#\n<so>30</so>\n5@4.00#\n<so>10</so>"
    )
